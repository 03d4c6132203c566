"""One trace from an HTTP caller through sidecar, router and shard, as a real OTLP endpoint receives it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from otlp_collector import Collector, ReceivedSpan, run_collector

from headrace.services.telemetry.spans import Tracing
from headrace.shard.engines.fake import FakeOptions
from headrace.v1 import embedding_service_pb2, embedding_service_pb2_grpc
from headrace.v1 import generate_service_pb2 as pb

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
RECORDED = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
NOT_RECORDED = {"traceparent": f"00-{TRACE}-{CALLER}-00"}
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6, "temperature": 0.5}
INTERNAL, SERVER = 1, 2
GENERATE = "headrace.v1.GenerateService/Generate"


@asynccontextmanager
async def traced(deploy_rest: Callable[..., Any], *, share: float = 1.0, **options: Any) -> AsyncIterator[Any]:
    """Runs all three processes' parts; the spans are with the collector once this has ended."""
    async with run_collector() as collector:
        rest, router, shard = (
            Tracing.exporting_to(collector.address, service_name=name, share=share)
            for name in ("rest", "router", "shard")
        )
        async with deploy_rest(rest_tracing=rest, tracing=router, shard_tracing=shard, **options) as running:
            yield running, collector
        await asyncio.gather(rest.close(), router.close(), shard.close())


def check_inside(inner: ReceivedSpan, outer: ReceivedSpan) -> None:
    """Checks that one span is the child of another and lies within it, as exactly as two clocks are read."""
    assert inner.parent_id == outer.span_id
    assert inner.trace_id == outer.trace_id
    assert outer.begun_ns - 1e6 <= inner.begun_ns <= inner.ended_ns <= outer.ended_ns + 1e6


async def test_a_request_is_one_trace_through_every_process(deploy_rest: Callable[..., Any]) -> None:
    async with traced(deploy_rest) as (rest, collector):
        answer = await rest.http.post("/v1/chat/completions", json=CHAT, headers=RECORDED)
        assert answer.status_code == 200
    assert {span.trace_id for span in collector.spans} == {TRACE}
    edge = collector.one("POST /v1/chat/completions")
    assert (edge.service, edge.kind, edge.parent_id) == ("rest", SERVER, CALLER)
    assert edge.attributes["http.response.status_code"] == 200
    [call] = [span for span in collector.spans if span.name.startswith("headrace.v1.GenerateService/")]
    assert (call.service, call.kind, call.attributes["rpc.grpc.status_code"]) == ("router", SERVER, 0)
    assert call.attributes["headrace.request_id"] == answer.headers["x-request-id"]
    check_inside(call, edge)
    request = collector.one("chat test-model")
    assert (request.service, request.kind, request.has_failed) == ("router", INTERNAL, False)
    check_inside(request, call)
    for phase in ("queue", "prefill", "decode"):
        check_inside(collector.one(phase), request)
    sequence = collector.one("run sequence")
    assert sequence.service == "shard"
    check_inside(sequence, call)
    assert len(collector.spans) == 7


async def test_a_request_tells_what_was_asked_for_and_never_a_text(deploy_rest: Callable[..., Any]) -> None:
    async with traced(deploy_rest) as (rest, collector):
        answer = (await rest.http.post("/v1/chat/completions", json=CHAT)).json()
    told = collector.one("chat test-model").attributes
    usage = answer["usage"]
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "headrace",
        "gen_ai.request.model": "test-model",
        "gen_ai.response.model": "test-model",
        "gen_ai.response.id": collector.one(told_by(collector)).attributes["headrace.request_id"],
        "gen_ai.request.max_tokens": 6,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.response.finish_reasons": ["length"],
    }
    assert "Hello" not in repr(collector.spans)


def told_by(collector: Collector) -> str:
    [name] = {span.name for span in collector.spans if span.name.startswith("headrace.v1.GenerateService/")}
    return name


async def test_who_began_the_trace_decides_whether_it_is_recorded(deploy_rest: Callable[..., Any]) -> None:
    async with traced(deploy_rest) as (rest, collector):
        assert (await rest.http.post("/v1/chat/completions", json=CHAT, headers=NOT_RECORDED)).status_code == 200
    assert collector.spans == []
    async with traced(deploy_rest, share=0.0) as (rest, collector):
        assert (await rest.http.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert (await rest.http.post("/v1/chat/completions", json=CHAT, headers=RECORDED)).status_code == 200
    assert {span.trace_id for span in collector.spans} == {TRACE}


async def test_failures_are_marked_where_they_are_ours(deploy_rest: Callable[..., Any]) -> None:
    async with traced(deploy_rest, engine=FakeOptions(error_token_id=666)) as (rest, collector):
        stub = rest.router.generate
        for token_id, max_count in ((5, 0), (666, 4)):
            request = pb.GenerateRequest(
                token_ids=pb.TokenIds(ids=[token_id]),
                stopping=pb.StoppingRules(max_new_token_count=max_count),
                request_id=f"mine-{token_id}",
            )
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.Generate(request)
        for path in ("/no/such/path?key=hr_secret", "/hr_secret", "/v1/models/hr_secret"):
            headers = {"authorization": "Bearer hr_secret", "x-api-key": "hr_secret", "tracestate": "a=hr_state"}
            assert (await rest.http.get(path, headers=headers)).status_code == 404
    invalid, failed = (span for span in collector.spans if span.name == GENERATE)
    assert (invalid.attributes["rpc.grpc.status_code"], invalid.has_failed) == (3, False)
    assert (failed.attributes["rpc.grpc.status_code"], failed.has_failed) == (13, True)
    assert failed.attributes["headrace.request_id"] == "mine-666"
    reasons = [span.attributes["error.type"] for span in collector.spans if span.name == "text_completion test-model"]
    assert reasons == ["INVALID_REQUEST", "ROW_FAILED"]
    assert collector.one("run sequence").has_failed
    # A path that a caller made up is no name of a span.
    paths = [span.attributes["url.path"] for span in collector.spans if span.name.startswith("GET")]
    assert paths == ["unknown", "unknown", "/v1/models/{model:path}"]
    assert "hr_secret" not in repr(collector.spans)


async def test_a_sequence_that_its_caller_gave_up_ends_with_the_last_step(deploy_rest: Callable[..., Any]) -> None:
    async with traced(deploy_rest, engine=FakeOptions(step_time_s=0.002)) as (rest, collector):
        call = rest.router.generate.GenerateStream(
            pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5]), stopping=pb.StoppingRules(max_new_token_count=3000))
        )
        for _ in range(4):
            await call.read()
        call.cancel()
        await rest.idle()
        embed = embedding_service_pb2_grpc.EmbeddingServiceStub(rest.router.channel)
        inputs = [embedding_service_pb2.EmbeddingInput(token_ids=pb.TokenIds(ids=[5, 6, 7]))]
        pooling = embedding_service_pb2.POOLING_MEAN
        await embed.Embed(embedding_service_pb2.EmbedRequest(inputs=inputs, pooling=pooling))
    assert collector.one("text_completion test-model").attributes["error.type"] == "CANCELLED"
    [given_up, embedded] = sorted(
        (span for span in collector.spans if span.name == "run sequence"), key=lambda span: span.begun_ns
    )
    assert given_up.ended_ns <= embedded.begun_ns
    assert collector.one("embeddings test-model").attributes["gen_ai.usage.input_tokens"] == 3
