"""A client's calls are spans of its caller's trace, which the server goes on with."""

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from headrace.client import AsyncClient, Client, QueueFull

Server = Any
Script = Any
Fail = Any


class Recorder:
    """The caller's own OpenTelemetry."""

    def __init__(self) -> None:
        self.provider = TracerProvider(shutdown_on_exit=False)
        self._exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def one(self) -> ReadableSpan:
        [span] = self._exporter.get_finished_spans()
        return span

    @property
    def names(self) -> list[str]:
        return [span.name for span in self._exporter.get_finished_spans()]


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    yield recorder
    recorder.provider.shutdown()


def traceparent_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"


async def test_a_call_is_a_child_of_the_callers_span_and_the_servers_parent(
    server: Server, script: Script, recorder: Recorder
) -> None:
    tracer = recorder.provider.get_tracer("test")
    async with AsyncClient(server.target, tracer_provider=recorder.provider) as client:
        with tracer.start_as_current_span("mine") as mine:
            mine_id = mine.get_span_context().span_id
            await client.generate("Once", model="m", max_new_token_count=4, temperature=0.5)
            span = recorder.one()
    assert span.parent is not None
    assert (span.name, span.kind, span.parent.span_id) == ("text_completion m", SpanKind.CLIENT, mine_id)
    assert script.headers[0]["traceparent"] == traceparent_of(span)
    told = dict(span.attributes or {})
    assert told.pop("server.address") == server.target
    assert told == {
        "rpc.system": "grpc",
        "rpc.service": "headrace.v1.GenerateService",
        "rpc.method": "Generate",
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "headrace",
        "gen_ai.request.model": "m",
        "gen_ai.request.max_tokens": 4,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.id": "chosen",
        "gen_ai.response.model": "m",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 4,
    }


async def test_both_clients_trace_calls_and_streams_alike(server: Server, script: Script, recorder: Recorder) -> None:
    messages = [{"role": "user", "content": "Why?"}]
    async with AsyncClient(server.target, tracer_provider=recorder.provider) as client:
        await client.chat(messages)
        await client.chat_stream(messages).result()

    def synchronous() -> None:
        with Client(server.target, tracer_provider=recorder.provider) as client:
            client.chat(messages)
            client.chat_stream(messages).result()

    await asyncio.to_thread(synchronous)
    async with asyncio.timeout(5):  # a thread of gRPC ends the last one
        while len(recorder.names) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert recorder.names == ["chat"] * 4
    assert len({headers["traceparent"] for headers in script.headers}) == 4


async def test_a_failure_is_told_by_its_reason(server: Server, script: Script, fail: Fail, recorder: Recorder) -> None:
    script.failures.append(fail(code=grpc.StatusCode.RESOURCE_EXHAUSTED, reason="QUEUE_FULL"))
    options = [("grpc.enable_retries", 0)]
    async with AsyncClient(server.target, tracer_provider=recorder.provider, channel_options=options) as client:
        with pytest.raises(QueueFull):
            await client.generate("Once")
    span = recorder.one()
    assert not span.status.is_ok
    assert (span.attributes or {})["error.type"] == "QUEUE_FULL"


async def test_a_stream_that_is_left_ends_its_span(server: Server, script: Script, recorder: Recorder) -> None:
    script.gate = asyncio.Event()
    async with AsyncClient(server.target, tracer_provider=recorder.provider) as client:
        async with client.stream("Once") as stream:
            await anext(stream)
    assert (recorder.one().attributes or {})["error.type"] == "CANCELLED"


async def test_without_a_provider_no_header_is_added(server: Server, script: Script) -> None:
    async with AsyncClient(server.target) as client:
        await client.generate("Once")
    assert "traceparent" not in script.headers[0]
