"""Vectors over fake engines: what a request for them meets between admission and its answer."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from headrace.contract.embedding import EmbeddingRequest
from headrace.contract.errors import (
    AdapterNotFound,
    DeadlineExceeded,
    Draining,
    DuplicateRequest,
    FeatureUnsupported,
    InvalidRequest,
    ModelNotFound,
    QueueFull,
    RequestAborted,
    RowFailed,
)
from headrace.contract.generation import GenerationRequest, TextPrompt, TokenPrompt
from headrace.contract.pooling import Pooling, PoolingOptions
from headrace.contract.step import StepPlan
from headrace.router.embedding_pipeline import EmbeddingPipeline
from headrace.shard.engines.fake import FakeEngine, FakeOptions
from headrace.shard.engines.fake_oracle import expected_tokens, expected_vector

Start = Callable[..., Any]
Request = Callable[..., GenerationRequest]
POOLINGS = pytest.mark.parametrize("pooling", Pooling)


def prompt(number: int, length: int = 40) -> tuple[int, ...]:
    return tuple(100 + (number * 7919 + index * 31) % 40000 for index in range(length))


def asking(*prompts: tuple[int, ...], pooling: Pooling | None = Pooling.MEAN, **fields: Any) -> EmbeddingRequest:
    return EmbeddingRequest(inputs=tuple(map(TokenPrompt, prompts)), pooling=pooling, **fields)


def vector(token_ids: tuple[int, ...], pooling: Pooling, **options: Any) -> bytes:
    return expected_vector(token_ids, PoolingOptions(pooling=pooling, **options), hidden_size=16)


async def vectors(bench: Any, request: EmbeddingRequest) -> list[bytes]:
    answer = await EmbeddingPipeline(bench.pipeline).embed(request)
    return [embedding.values for embedding in answer.embeddings]


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until something is true; the test's timeout bounds it."""
    while not condition():  # noqa: ASYNC110  # the scheduler is pure: nobody tells when it changed
        await asyncio.sleep(0.001)


async def all_is_free(bench: Any) -> None:
    await until(lambda: bench.replicas.statuses()[0].stats.leased_block_count == 0)
    assert bench.pipeline.admission.waiting_count == 0
    assert bench.pipeline.desk.request_count == 0
    bench.check_integrity()


@POOLINGS
async def test_each_input_gets_its_vector(start: Start, pooling: Pooling) -> None:
    prompts = [prompt(number, 1 + 60 * number) for number in range(6)]
    async with start(step_token_limit=64, prefill_chunk_token_limit=20) as bench:
        answer = await EmbeddingPipeline(bench.pipeline).embed(asking(*prompts, pooling=pooling, request_id="mine"))
        assert [embedding.values for embedding in answer.embeddings] == [vector(ids, pooling) for ids in prompts]
        assert [embedding.token_count for embedding in answer.embeddings] == [len(ids) for ids in prompts]
        assert (answer.request_id, answer.model) == ("mine", "test-model")
        assert answer.queued_s >= 0
        assert answer.computed_s > 0
        await all_is_free(bench)


async def test_vectors_and_texts_run_side_by_side(start: Start, request_of: Request) -> None:
    async with start(engine=FakeOptions(block_count=24), step_row_limit=8) as bench:
        texts = [bench.ask(request_of(prompt(number), 60)) for number in range(6)]
        pooled = [vectors(bench, asking(prompt(number), pooling=pooling)) for number in range(6) for pooling in Pooling]
        answers = await asyncio.gather(*texts, *pooled)
        for number, answer in enumerate(answers[:6]):
            assert answer.token_ids == expected_tokens(prompt(number), 60)
        wanted = [[vector(prompt(number), pooling)] for number in range(6) for pooling in Pooling]
        assert answers[6:] == wanted
        await all_is_free(bench)


async def test_the_mean_reads_no_cache_and_the_last_state_does(start: Start, request_of: Request) -> None:
    async with start() as bench:
        pipeline = EmbeddingPipeline(bench.pipeline)
        await bench.ask(request_of(prompt(1), 5))
        mean = await pipeline.embed(asking(prompt(1)))
        last = await pipeline.embed(asking(prompt(1), pooling=Pooling.LAST))
        assert [answer.embeddings[0].cached_token_count for answer in (mean, last)] == [0, 32]
        assert mean.embeddings[0].values == vector(prompt(1), Pooling.MEAN)
        assert last.embeddings[0].values == vector(prompt(1), Pooling.LAST)
        await pipeline.embed(asking(prompt(2)))
        # What was computed for a vector helps a text.
        assert (await bench.ask(request_of(prompt(2), 5))).started.cached_token_count == 32
        salted = await bench.ask(request_of(prompt(2), 5, cache_salt="other"))
        assert salted.started.cached_token_count == 0


async def test_vectors_are_cut_and_scaled_as_asked(start: Start) -> None:
    async with start() as bench:
        plain = await vectors(bench, asking(prompt(1), normalize=False))
        assert plain == [vector(prompt(1), Pooling.MEAN, is_normalized=False)]
        cut = await vectors(bench, asking(prompt(1), dimension_count=3))
        assert cut == [vector(prompt(1), Pooling.MEAN, dimension_count=3)]
        kept = await EmbeddingPipeline(bench.pipeline).embed(asking(prompt(1), truncate_token_count=7))
        assert kept.embeddings[0].values == vector(prompt(1)[:7], Pooling.MEAN)
        assert kept.embeddings[0].token_count == 7


async def test_text_is_tokenized_as_for_generation(start: Start) -> None:
    async with start() as bench:
        tokenized = await bench.pipeline.tokenize(TextPrompt("How do rivers flow?"))
        request = EmbeddingRequest(inputs=(TextPrompt("How do rivers flow?"),), pooling=Pooling.MEAN)
        assert await vectors(bench, request) == [vector(tokenized.token_ids, Pooling.MEAN)]


@POOLINGS
async def test_a_lost_engine_is_replaced(start: Start, pooling: Pooling) -> None:
    prompts = [prompt(number, 200) for number in range(4)]
    async with start(engine=FakeOptions(step_time_s=0.002), step_token_limit=64) as bench:
        task = asyncio.ensure_future(vectors(bench, asking(*prompts, pooling=pooling)))
        await until(lambda: bench.replicas.statuses()[0].stats.step_count > 4)
        bench.connector.engines[0].die()
        assert await task == [vector(ids, pooling) for ids in prompts]
        assert bench.replicas.statuses()[0].restart_count == 1
        await all_is_free(bench)


async def test_a_poisonous_input_is_refused(start: Start, request_of: Request) -> None:
    def bite(plan: StepPlan) -> None:
        if any(39999 in sequence.token_ids for sequence in plan.admitted):
            loop.call_soon_threadsafe(bench.connector.engines[-1].die)
            raise RuntimeError("a crash")

    loop = asyncio.get_running_loop()
    async with start(make=lambda: FakeEngine(FakeOptions(step_time_s=0.001), on_step=bite)) as bench:
        good = asyncio.ensure_future(bench.ask(request_of(prompt(1), 40)))
        bad = vectors(bench, asking(prompt(2), (39999, 1)))
        (error,) = await asyncio.gather(bad, return_exceptions=True)
        assert getattr(error, "reason", error) == "REQUEST_REFUSED"
        assert (await good).token_ids == expected_tokens(prompt(1), 40)
        await all_is_free(bench)


async def test_one_failed_input_fails_the_call_and_no_other(start: Start) -> None:
    async with start(engine=FakeOptions(error_token_id=39999)) as bench:
        good, bad = await asyncio.gather(
            vectors(bench, asking(prompt(1))), vectors(bench, asking(prompt(2), (39999, 5))), return_exceptions=True
        )
        assert good == [vector(prompt(1), Pooling.MEAN)]
        assert isinstance(bad, RowFailed)
        await all_is_free(bench)


async def test_a_call_that_leaves_takes_its_inputs_along(start: Start) -> None:
    slow = FakeOptions(step_time_s=0.005)
    async with start(engine=slow, step_token_limit=16, prefill_chunk_token_limit=16) as bench:
        many = asking(*(prompt(number, 300) for number in range(5)), request_id="mine")
        task = asyncio.ensure_future(vectors(bench, many))
        await until(lambda: bench.replicas.statuses()[0].stats.step_count > 2)
        with pytest.raises(DuplicateRequest):
            await vectors(bench, asking(prompt(9), request_id="mine"))
        task.cancel()
        await asyncio.wait([task])
        await all_is_free(bench)
        task = asyncio.ensure_future(vectors(bench, many))
        await until(lambda: bench.replicas.statuses()[0].stats.running_count > 0)
        assert bench.pipeline.desk.abort(["mine"]) == ["mine"]
        with pytest.raises(RequestAborted):
            await task
        await all_is_free(bench)
        deadline_s = asyncio.get_running_loop().time() + 0.05
        with pytest.raises(DeadlineExceeded):
            await vectors(bench, asking(prompt(1, 3000), prompt(2), deadline_s=deadline_s))
        await all_is_free(bench)


async def test_every_input_counts_against_the_queue(start: Start, request_of: Request) -> None:
    options = FakeOptions(step_time_s=0.005)
    async with start(engine=options, step_row_limit=1, waiting_request_limit=4) as bench:
        running = asyncio.ensure_future(bench.ask(request_of((1, 2), 40)))
        await until(lambda: bench.replicas.statuses()[0].stats.running_count == 1)
        waiting = asyncio.ensure_future(vectors(bench, asking(*(prompt(number) for number in range(3)))))
        await until(lambda: bench.pipeline.admission.waiting_count == 3)
        with pytest.raises(QueueFull):
            await vectors(bench, asking(prompt(7), prompt(8)))
        await asyncio.gather(running, waiting)
        await all_is_free(bench)


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (asking(), ["inputs"]),
        (asking(*([(1,)] * 65)), ["inputs"]),
        (asking((1,), ()), ["inputs[1].token_ids"]),
        (asking((1,), (7, 49152)), ["inputs[1].token_ids.ids[1]"]),
        (EmbeddingRequest(inputs=(None, TextPrompt("")), pooling=Pooling.LAST), ["inputs[0]", "inputs[1].text"]),
        (asking((1,), pooling=None), ["pooling"]),
        (asking((1,), dimension_count=0), ["dimension_count"]),
        (asking((1,), dimension_count=17), ["dimension_count"]),
        (asking((1,), truncate_token_count=0, priority=11), ["truncate_token_count", "priority"]),
        (asking((1,), cache_salt="x" * 257, request_id="a b"), ["request_id", "cache_salt"]),
        (asking((1,), tuple(range(4001))), ["inputs[1].token_ids"]),
    ],
)
async def test_a_bad_field_is_named(start: Start, request_: EmbeddingRequest, fields: list[str]) -> None:
    async with start() as bench:
        with pytest.raises(InvalidRequest) as caught:
            await vectors(bench, request_)
        assert [violation.field for violation in caught.value.violations] == fields
        assert bench.replicas.statuses()[0].stats.step_count == 0
        await all_is_free(bench)


async def test_what_is_not_there_is_refused(start: Start) -> None:
    async with start() as bench:
        with pytest.raises(ModelNotFound):
            await vectors(bench, asking((1,), model="other"))
        with pytest.raises(AdapterNotFound, match="mine"):
            await vectors(bench, asking((1,), adapter="mine"))
        bench.pipeline.desk.refuse_new(Draining("going away"))
        with pytest.raises(Draining):
            await vectors(bench, asking((1,)))
    async with start(engine=FakeOptions(adapter_limit=0)) as bench:
        with pytest.raises(FeatureUnsupported, match="adapter"):
            await vectors(bench, asking((1,), adapter="mine"))
    async with start(engine=FakeOptions(hidden_size=0)) as bench:
        with pytest.raises(FeatureUnsupported, match="pooling: the engine has no embeddings"):
            await vectors(bench, asking((1,)))
