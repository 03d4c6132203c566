"""What Prometheus is told is what happened, in the words of the vocabulary."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from peft_folders import write_peft_folder
from scrape import Scrape, scrape

from headrace.contract.errors import StartupError
from headrace.services.address import TcpAddress
from headrace.services.telemetry.endpoint import serve_metrics
from headrace.services.telemetry.metric import MetricKind
from headrace.services.telemetry.router_metrics import ROUTER_METRICS, read_router
from headrace.services.telemetry.tgi_metrics import TGI_METRICS, read_tgi
from headrace.services.telemetry.vocabulary import VOCABULARY
from headrace.shard.engines.fake import FakeOptions
from headrace.v1 import embedding_service_pb2, embedding_service_pb2_grpc, router_service_pb2
from headrace.v1 import generate_service_pb2 as pb
from headrace.v1.sampling_pb2 import SamplingParams

Deploy = Callable[..., AbstractAsyncContextManager[Any]]
MODEL = {"model": "test-model"}
REPLICA = {**MODEL, "replica": "replica-0"}


def request_of(count: int, first_id: int = 100, **fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=range(first_id, first_id + 40)),
        sampling=SamplingParams(temperature=0.0),
        stopping=pb.StoppingRules(max_new_token_count=count),
        **fields,
    )


@asynccontextmanager
async def metrics_of(server: Any) -> AsyncIterator[str]:
    sources = [partial(read_router, server.app.pipeline, server.app.server)]
    async with serve_metrics(TcpAddress("127.0.0.1", 0), ROUTER_METRICS, sources) as endpoint:
        assert endpoint is not None
        yield endpoint.address


async def end_of(server: Any, call: Any) -> grpc.StatusCode:
    """Waits until a failing call is over on both ends."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    await server.until(lambda: server.app.pipeline.desk.request_count == 0)
    return caught.value.code()


async def test_counters_tell_what_was_asked_for(deploy: Deploy) -> None:
    async with deploy() as server, metrics_of(server) as address:
        for _ in range(2):
            await server.generate.Generate(request_of(8))
        await server.generate.Generate(request_of(5, first_id=9000, completion_count=3))
        told = await scrape(address)
    assert told.get("headrace_requests_total", **MODEL, kind="generate", outcome="COMPLETED") == 3
    assert told.get("headrace_completions_total", **MODEL, finish_reason="length") == 5
    assert told.get("headrace_prompt_tokens_total", **MODEL) == 120
    assert told.get("headrace_generated_tokens_total", **MODEL) == 31
    assert told.get("headrace_sampled_tokens_total", **REPLICA) == 31
    assert told.get("headrace_request_duration_seconds_count", **MODEL, kind="generate") == 3
    assert told.get("headrace_request_generated_tokens_sum", **MODEL) == 31
    # Each of five completions waited for a first token, and the other tokens for the one before.
    assert told.get("headrace_queue_wait_seconds_count", **REPLICA) == 5
    assert told.get("headrace_time_to_first_token_seconds_count", **REPLICA) == 5
    assert told.get("headrace_inter_token_seconds_count", **REPLICA) == 26
    # The second request and the followers of the third found whole blocks of 16 of their prompts.
    assert told.get("headrace_prefix_queried_tokens_total", **REPLICA) == 200
    assert told.get("headrace_prefix_hit_tokens_total", **REPLICA) == 3 * 32
    step_count = told.get("headrace_step_rows_count", **REPLICA)
    # A step is counted when it is planned and timed when it is answered; the last ones may be under way.
    assert 0 <= step_count - told.get("headrace_step_duration_seconds_count", **REPLICA, part="forward") <= 2
    assert told.get("headrace_step_tokens_sum", **REPLICA) == told.get("headrace_computed_tokens_total", **REPLICA)
    assert told.sum("headrace_kv_blocks") == told.get("headrace_kv_block_capacity", **REPLICA) == 2048
    assert told.get("headrace_kv_blocks", **REPLICA, state="cached") > 0
    assert told.get("headrace_grpc_calls_total", method="headrace.v1.GenerateService/Generate", code="OK") == 3


async def test_every_way_to_end_has_its_outcome(deploy: Deploy) -> None:
    engine = FakeOptions(step_time_s=0.01)
    async with (
        deploy(engine=engine, step_row_limit=1, waiting_request_limit=1) as server,
        metrics_of(server) as address,
    ):
        assert await end_of(server, server.generate.Generate(request_of(0))) is grpc.StatusCode.INVALID_ARGUMENT
        late = server.generate.Generate(request_of(3000), timeout=0.2)
        assert await end_of(server, late) is grpc.StatusCode.DEADLINE_EXCEEDED
        running = server.generate.Generate(request_of(3000))
        await server.until(lambda: server.stats().running_count == 1)
        waiting = server.generate.Generate(request_of(3000))
        await server.until(lambda: server.app.pipeline.admission.waiting_count == 1)
        queued = await scrape(address)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.generate.Generate(request_of(3000))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        waiting.cancel()
        running.cancel()
        await server.until(lambda: server.app.pipeline.desk.request_count == 0)
        told = await scrape(address)
    assert queued.get("headrace_queue_sequences", **MODEL) == 1
    assert queued.get("headrace_queue_tokens", **MODEL) == 40
    assert queued.get("headrace_running_sequences", **REPLICA) == 1
    assert queued.get("headrace_requests_in_flight", **MODEL) == 2
    assert told.get("headrace_queue_sequences", **MODEL) == 0
    for outcome, count in {"INVALID_REQUEST": 1, "DEADLINE_EXCEEDED": 1, "QUEUE_FULL": 1, "CANCELLED": 2}.items():
        found = told.get("headrace_requests_total", **MODEL, kind="generate", outcome=outcome)
        assert found == count, outcome


async def test_preemptions_replays_and_vectors_are_counted(deploy: Deploy) -> None:
    async with deploy(engine=FakeOptions(block_count=12, step_time_s=0.001)) as server, metrics_of(server) as address:
        await asyncio.gather(*(server.generate.Generate(request_of(100, first_id=n * 1000)) for n in (1, 2)))
        embed = embedding_service_pb2_grpc.EmbeddingServiceStub(server.channel)
        inputs = [embedding_service_pb2.EmbeddingInput(token_ids=pb.TokenIds(ids=[5, 6, 7]))] * 2
        pooling = embedding_service_pb2.POOLING_MEAN
        await embed.Embed(embedding_service_pb2.EmbedRequest(inputs=inputs, pooling=pooling))
        told = await scrape(address)
    assert told.get("headrace_preemptions_total", **REPLICA) == server.stats().preemption_count > 0
    assert told.get("headrace_requests_total", **MODEL, kind="embed", outcome="COMPLETED") == 1
    assert told.get("headrace_prompt_tokens_total", **MODEL) == 86
    # Vectors have no tokens to wait for, but wait in the same queue; a sequence that comes back waits no second time.
    assert told.get("headrace_queue_wait_seconds_count", **REPLICA) == 4
    assert told.get("headrace_time_to_first_token_seconds_count", **REPLICA) == 2


async def test_adapters_are_counted_as_they_come_and_go(deploy: Deploy, tmp_path: Path) -> None:
    async with deploy(shard_count=2) as server, metrics_of(server) as address:
        for name in ("poet", "clerk"):
            source = str(write_peft_folder(tmp_path / name))
            await server.router.LoadAdapter(router_service_pb2.LoadAdapterRequest(name=name, source=source))
        with pytest.raises(grpc.aio.AioRpcError):
            await server.router.LoadAdapter(router_service_pb2.LoadAdapterRequest(name="lost", source="/nowhere"))
        await server.router.UnloadAdapter(router_service_pb2.UnloadAdapterRequest(name="poet"))
        told = await scrape(address)
    assert told.get("headrace_adapters", **MODEL) == 1
    assert told.get("headrace_adapter_loads_total", **MODEL, outcome="COMPLETED") == 2
    assert told.get("headrace_adapter_loads_total", **MODEL, outcome="FAILED") == 1
    assert told.get("headrace_adapter_unloads_total", **MODEL) == 1


async def test_the_endpoint_says_what_the_vocabulary_says(deploy: Deploy) -> None:
    async with deploy() as server, metrics_of(server) as address:
        await server.generate.Generate(request_of(8))
        check_vocabulary(await scrape(address), "router")


def check_vocabulary(told: Scrape, process: str) -> None:
    """Checks that every metric is there as documented, and nothing of ours beside."""
    documented = {name for metric in VOCABULARY[process] for name in metric.series_names}
    assert {name for name in told.names if name.startswith("headrace_")} == documented
    for metric in VOCABULARY[process]:
        assert told.kinds[metric.name] == metric.kind.value
        labels = set(metric.labels) - {"tenant"}  # empty where callers have no names
        if metric.kind is not MetricKind.HISTOGRAM:
            assert told.labels(metric.name) == labels, metric.name
            continue
        assert told.labels(f"{metric.name}_count") == labels, metric.name
        found = {dict(of)["le"] for name, of in told.values if name == f"{metric.name}_bucket"}
        assert {float(bound) for bound in found} == {*metric.bounds, float("inf")}, metric.name
    assert told.get("process_cpu_seconds_total") > 0


async def test_grammars_and_requests_that_moved_are_told(deploy: Deploy) -> None:
    """The engine of these tests holds nothing to a grammar, so what the pipeline would note is noted here."""
    async with deploy(shard_count=2, engine=FakeOptions(step_time_s=0.01)) as server, metrics_of(server) as address:
        server.app.pipeline.desk.meter.grammar_s.observe(0.003)
        running = server.generate.Generate(request_of(60))
        await server.until(lambda: server.stats(0).running_count + server.stats(1).running_count == 1)
        busy = 0 if server.stats(0).running_count else 1
        removal = router_service_pb2.RemoveReplicaRequest(id=f"replica-{busy}")
        await server.router.RemoveReplica(removal)
        answer = await running
        told = await scrape(address)
    assert len(answer.completions[0].token_ids) == 60
    assert told.get("headrace_replays_total", **MODEL) == 1
    assert told.get("headrace_grammar_compile_seconds_count", **MODEL) == 1
    assert told.get("headrace_grammar_compile_seconds_bucket", **MODEL, le="0.005") == 1


async def test_the_names_of_text_generation_inference_tell_the_same(deploy: Deploy) -> None:
    async with deploy() as server:
        source = partial(read_tgi, server.app.pipeline)
        async with serve_metrics(TcpAddress("127.0.0.1", 0), TGI_METRICS, [source]) as endpoint:
            assert endpoint is not None
            await server.generate.Generate(request_of(8))
            await end_of(server, server.generate.Generate(request_of(0)))
            told = await scrape(endpoint.address)
    documented = {name for metric in TGI_METRICS for name in metric.series_names}
    assert {name for name in told.names if name.startswith("tgi_")} == documented
    assert told.get("tgi_request_count") == 2
    assert told.get("tgi_request_success") == 1
    assert told.get("tgi_request_failure", err="validation") == 1
    assert told.get("tgi_request_generated_tokens_sum") == 8
    assert told.get("tgi_request_max_new_tokens_sum") == 8
    assert told.get("tgi_request_input_length_sum") == 40
    assert told.get("tgi_request_mean_time_per_token_duration_count") == 1
    assert told.get("tgi_batch_next_size_count") == server.stats().step_count


async def test_an_address_that_is_taken_stops_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(StartupError, match=f"cannot serve metrics on 127.0.0.1:{taken.getsockname()[1]}"):
            async with serve_metrics(TcpAddress("127.0.0.1", taken.getsockname()[1]), (), ()):
                pytest.fail("it listens")


async def test_without_an_address_nothing_listens() -> None:
    async with serve_metrics(None, (), ()) as endpoint:
        assert endpoint is None
