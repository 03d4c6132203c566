"""Adapters over fake engines: loaded, used, kept apart, taken back, and brought again to an engine that was lost."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft_folders import write_peft_folder

from headrace.contract.adapter import AdapterOrder
from headrace.contract.embedding import EmbeddingRequest
from headrace.contract.errors import (
    AdapterNotFound,
    AdaptersFull,
    DuplicateAdapter,
    FeatureUnsupported,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    StartupError,
)
from headrace.contract.generation import GenerationRequest, GenerationStarted, TokenPrompt
from headrace.contract.pooling import Pooling
from headrace.router.adapter_desk import AdapterDesk
from headrace.router.adapter_table import Adapter, AdapterStats
from headrace.router.embedding_pipeline import EmbeddingPipeline
from headrace.router.reporting import report_nothing
from headrace.shard.engines.fake import FakeOptions
from headrace.shard.engines.fake_oracle import expected_tokens

Start = Callable[..., Any]
Request = Callable[..., GenerationRequest]
PROMPT = tuple(range(100, 180))
SLOW = FakeOptions(step_time_s=0.01)


@pytest.fixture
def poet(tmp_path: Path) -> str:
    return str(write_peft_folder(tmp_path / "poet", weights=b"verses", r=6))


@pytest.fixture
def clerk(tmp_path: Path) -> str:
    return str(write_peft_folder(tmp_path / "clerk", weights=b"forms"))


def desk_of(bench: Any) -> AdapterDesk:
    return AdapterDesk(bench.replicas, model_name="test-model", report=report_nothing)


def digest_of(bench: Any, name: str) -> str:
    with bench.pipeline.adapters.use(name) as digest:
        assert isinstance(digest, str)
        return digest


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # the scheduler is pure: nobody tells when it changed
        await asyncio.sleep(0.001)


def unloaded(engine: Any) -> list[str]:
    return [order for order in engine.orders if isinstance(order, str)]


async def test_each_request_gets_the_adapter_that_it_names(
    start: Start, request_of: Request, poet: str, clerk: str
) -> None:
    async with start(replica_count=2) as bench:
        desk = desk_of(bench)
        assert await desk.load("poet", poet) == Adapter(name="poet", source=poet, rank=6)
        await desk.load("clerk", clerk)
        names = ["poet", "", "clerk"] * 4
        answers = await asyncio.gather(*(bench.ask(request_of(PROMPT, 20, adapter=name)) for name in names))
        for name, answer in zip(names, answers, strict=True):
            assert answer.token_ids == expected_tokens(PROMPT, 20, adapter=digest_of(bench, name))
        assert len({answer.token_ids for answer in answers}) == 3
        assert bench.pipeline.adapters.stats() == AdapterStats(adapter_count=2, load_count=2)
        bench.check_integrity()


async def test_the_name_of_an_adapter_may_stand_for_its_model(start: Start, request_of: Request, poet: str) -> None:
    async with start() as bench:
        with pytest.raises(ModelNotFound):
            await bench.ask(request_of(PROMPT, model="poet"))
        await desk_of(bench).load("poet", poet)
        expected = expected_tokens(PROMPT, 8, adapter=digest_of(bench, "poet"))
        for fields in (
            {"model": "poet"},
            {"model": "poet", "adapter": "poet"},
            {"model": "test-model", "adapter": "poet"},
        ):
            assert (await bench.ask(request_of(PROMPT, **fields))).token_ids == expected
        with pytest.raises(InvalidRequest, match="adapter: must be 'poet' or empty beside the model 'poet'"):
            await bench.ask(request_of(PROMPT, model="poet", adapter="clerk"))
        assert await bench.pipeline.detokenize((), model="poet") == ""


async def test_cached_prefixes_are_those_of_the_same_weights(
    start: Start, request_of: Request, poet: str, clerk: str, tmp_path: Path
) -> None:
    async with start() as bench:
        desk = desk_of(bench)
        await desk.load("poet", poet)
        await desk.load("clerk", clerk)

        async def cached(name: str) -> int:
            answer = await bench.ask(request_of(PROMPT, 4, adapter=name))
            assert answer.token_ids == expected_tokens(PROMPT, 4, adapter=digest_of(bench, name))
            return answer.started.cached_token_count  # type: ignore[no-any-return]

        assert [await cached(name) for name in ("poet", "clerk", "", "poet", "clerk", "")] == [0, 0, 0, 64, 64, 64]
        desk.unload("poet")
        write_peft_folder(tmp_path / "poet", weights=b"prose", r=6)
        await desk.load("poet", poet)
        assert [await cached("poet"), await cached("poet")] == [0, 64]
        desk.unload("poet")
        write_peft_folder(tmp_path / "poet", weights=b"verses", r=6)
        await desk.load("poet", poet)
        assert await cached("poet") == 64  # the same weights again


async def test_an_unloaded_adapter_serves_those_that_have_it_to_their_end(
    start: Start, request_of: Request, poet: str
) -> None:
    async with start(engine=SLOW) as bench:
        desk = desk_of(bench)
        await desk.load("poet", poet)
        digest = digest_of(bench, "poet")
        events = bench.pipeline.generate(request_of(PROMPT, 40, adapter="poet"))
        assert isinstance(await anext(events), GenerationStarted)
        desk.unload("poet")
        assert bench.pipeline.adapters.adapters() == []
        with pytest.raises(AdapterNotFound, match="no adapter 'poet' is loaded"):
            await bench.ask(request_of(PROMPT, adapter="poet"))
        tokens = [token async for event in events for token in getattr(event, "token_ids", ())]
        assert tuple(tokens) == expected_tokens(PROMPT, 40, adapter=digest)
        [engine] = bench.connector.engines
        await until(lambda: unloaded(engine) == [digest])


async def test_a_request_that_goes_away_lets_its_adapter_go(start: Start, request_of: Request, poet: str) -> None:
    async with start(engine=SLOW) as bench:
        desk = desk_of(bench)
        await desk.load("poet", poet)
        digest = digest_of(bench, "poet")
        events = bench.pipeline.generate(request_of(PROMPT, 400, adapter="poet"))
        await anext(events)
        desk.unload("poet")
        await events.aclose()
        [engine] = bench.connector.engines
        await until(lambda: unloaded(engine) == [digest])
        answer = await bench.ask(request_of(PROMPT, 3))
        assert answer.token_ids == expected_tokens(PROMPT, 3)
        assert len(bench.connector.engines) == 1


async def test_a_lost_engine_gets_its_adapters_again_before_its_requests(
    start: Start, request_of: Request, poet: str
) -> None:
    async with start(engine=SLOW) as bench:
        await desk_of(bench).load("poet", poet)
        digest = digest_of(bench, "poet")
        jobs = [
            asyncio.ensure_future(bench.ask(request_of(PROMPT[:count], 30, adapter=name)))
            for count, name in ((40, "poet"), (50, ""), (60, "poet"))
        ]
        await until(lambda: len(bench.connector.engines[0].plans) > 5)
        bench.connector.engines[0].die()
        answers = await asyncio.gather(*jobs)
        assert len(bench.connector.engines) == 2
        assert bench.connector.engines[1].orders == [AdapterOrder(source=poet, digest=digest)]
        for answer, count, adapter in zip(answers, (40, 50, 60), (digest, "", digest), strict=True):
            assert answer.token_ids == expected_tokens(PROMPT[:count], 30, adapter=adapter)


async def test_an_adapter_that_changed_on_disk_costs_its_requests_alone(
    start: Start, request_of: Request, poet: str, tmp_path: Path
) -> None:
    async with start(engine=SLOW) as bench:
        await desk_of(bench).load("poet", poet)
        jobs = [
            asyncio.ensure_future(bench.ask(request_of(PROMPT, 30, adapter=name), )) for name in ("poet", "")
        ]  # fmt: skip
        await until(lambda: len(bench.connector.engines[0].plans) > 5)
        write_peft_folder(tmp_path / "poet", weights=b"other")
        bench.connector.engines[0].die()
        lost, kept = await asyncio.gather(*jobs, return_exceptions=True)
        assert isinstance(lost, NotReady)
        assert kept.token_ids == expected_tokens(PROMPT, 30)
        with pytest.raises(NotReady, match="no replica could load the adapter again"):
            await bench.ask(request_of(PROMPT, adapter="poet"))


async def test_what_cannot_be_loaded_leaves_nothing_behind(start: Start, poet: str, clerk: str, tmp_path: Path) -> None:
    async with start(engine=FakeOptions(adapter_limit=1), replica_count=2) as bench:
        desk = desk_of(bench)
        with pytest.raises(InvalidRequest, match=r"source: the model server cannot read .*adapter_config.json"):
            await desk.load("poet", str(tmp_path))
        with pytest.raises(InvalidRequest, match="name: must not be 'test-model'"):
            await desk.load("test-model", poet)
        await desk.load("poet", poet)
        with pytest.raises(DuplicateAdapter):
            await desk.load("poet", poet)
        with pytest.raises(AdaptersFull, match="1 adapters are loaded and adapter_limit is 1"):
            await desk.load("clerk", clerk)
        assert [adapter.name for adapter in bench.pipeline.adapters.adapters()] == ["poet"]
        desk.unload("poet")
        await until(lambda: all(unloaded(engine) for engine in bench.connector.engines))
        await desk.load("clerk", clerk)


async def test_a_load_that_is_given_up_is_undone(start: Start, request_of: Request, poet: str) -> None:
    async with start(replica_count=2) as bench:
        await until(lambda: all(status.is_connected for status in bench.replicas.statuses()))
        first, second = bench.connector.engines
        second.may_load.clear()
        loading = asyncio.ensure_future(desk_of(bench).load("poet", poet))
        await until(lambda: bool(first.orders))
        with pytest.raises(AdapterNotFound):
            await bench.ask(request_of(PROMPT, adapter="poet"))
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        await until(lambda: bool(unloaded(first)))
        second.may_load.set()
        await desk_of(bench).load("poet", poet)


async def test_a_replica_that_comes_during_a_load_is_loaded_too(start: Start, request_of: Request, poet: str) -> None:
    async with start() as bench:
        [first] = bench.connector.engines
        first.may_load.clear()
        loading = asyncio.ensure_future(desk_of(bench).load("poet", poet))
        await asyncio.sleep(0)
        bench.replicas.add(("late",))
        await until(lambda: len(bench.replicas.statuses()) == 2 and bench.replicas.statuses()[1].is_connected)
        first.may_load.set()
        await loading
        assert len(bench.connector.engines[1].orders) == 1


async def test_adapters_of_the_settings_are_there_before_the_first_request(
    start: Start, request_of: Request, poet: str
) -> None:
    async with start(adapters={"poet": poet}, replica_count=2) as bench:
        answer = await bench.ask(request_of(PROMPT, 8, adapter="poet"))
        assert answer.token_ids == expected_tokens(PROMPT, 8, adapter=digest_of(bench, "poet"))
        assert bench.pipeline.adapters.stats().load_count == 1


async def test_an_adapter_of_the_settings_that_is_not_there_stops_the_start(start: Start, tmp_path: Path) -> None:
    async def serve() -> None:
        async with start(adapters={"poet": str(tmp_path)}, is_connected=False) as bench:
            bench.connector.may_connect.set()
            await asyncio.wait([bench.runner])

    with pytest.raises(BaseExceptionGroup) as caught:
        await serve()
    assert caught.group_contains(StartupError, match="cannot load the adapter 'poet': source: the model server cannot")


async def test_vectors_are_made_with_the_adapter_that_is_named(start: Start, poet: str) -> None:
    async with start() as bench:
        await desk_of(bench).load("poet", poet)
        embedding = EmbeddingPipeline(bench.pipeline)
        requests = [
            EmbeddingRequest(inputs=(TokenPrompt(PROMPT),), pooling=Pooling.LAST, adapter=name)
            for name in ("", "poet", "", "poet")
        ]
        values = [(await embedding.embed(request)).embeddings[0].values for request in requests]
        assert values[:2] == values[2:]
        assert values[0] != values[1]


async def test_without_a_replica_or_adapters_nothing_is_loaded(start: Start, poet: str) -> None:
    async with start(is_connected=False) as bench:
        with pytest.raises(NotReady):
            await desk_of(bench).load("poet", poet)
    async with start(engine=FakeOptions(adapter_limit=0)) as bench:
        with pytest.raises(FeatureUnsupported, match="adapter: the engine cannot load adapters"):
            await desk_of(bench).load("poet", poet)
