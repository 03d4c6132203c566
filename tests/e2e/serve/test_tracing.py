"""Under `headrace serve` router and shard send their spans by themselves, the last ones when they end."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from otlp_collector import run_collector

from headrace.v1 import generate_service_pb2 as pb

Serve = Callable[..., AbstractAsyncContextManager[Any]]


async def test_both_processes_tell_of_one_trace(serve: Serve) -> None:
    async with run_collector() as collector:
        async with serve("serve", "--engine=fake", f"--otlp-endpoint={collector.address}") as server:
            request = pb.GenerateRequest(text="Hello", stopping=pb.StoppingRules(max_new_token_count=5))
            await server.generate.Generate(request)
            assert await server.program.end() == 0
        request_span = collector.one("text_completion test-model")
        sequence = collector.one("run sequence")
    assert (request_span.service, sequence.service) == ("headrace-router", "headrace-shard")
    call = collector.one("headrace.v1.GenerateService/Generate")
    assert {request_span.parent_id, sequence.parent_id} == {call.span_id}
    assert (request_span.trace_id, sequence.trace_id) == (call.trace_id, call.trace_id)
