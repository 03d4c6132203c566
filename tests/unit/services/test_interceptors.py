"""What a call that its caller ends is said to have ended by."""

import asyncio
from collections.abc import Iterator
from typing import Any, cast

import grpc
import pytest
import structlog

from headrace.services.call_frame import CallFrames
from headrace.services.in_flight import InFlightCalls
from headrace.services.interceptors import CallInterceptor
from headrace.services.telemetry.call_meter import CallMeter


class Context:
    """A call of which so much time is left."""

    def __init__(self, remaining_s: float | None) -> None:
        self._remaining_s = remaining_s

    def time_remaining(self) -> float | None:
        return self._remaining_s

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()


class Details(grpc.HandlerCallDetails):
    """What gRPC says of a call before it begins."""

    method = "/headrace.v1.GenerateService/Generate"
    invocation_metadata = ()


@pytest.fixture
def log() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.mark.parametrize(
    ("remaining_s", "code"),
    [(-0.1, "DEADLINE_EXCEEDED"), (0.02, "DEADLINE_EXCEEDED"), (0.2, "CANCELLED"), (None, "CANCELLED")],
)
async def test_a_caller_who_ends_a_call_just_before_its_deadline_had_that_deadline(
    log: list[Any], remaining_s: float | None, code: str
) -> None:
    """The caller's own clock may be a few milliseconds ahead of ours."""

    async def cancelled(request: object, context: object) -> object:
        raise asyncio.CancelledError

    async def handler_of(details: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_unary_rpc_method_handler(cast("Any", cancelled))

    handler = await CallInterceptor(CallFrames(InFlightCalls(), CallMeter())).intercept_service(handler_of, Details())
    with pytest.raises(asyncio.CancelledError):
        await cast("Any", handler).unary_unary(b"", Context(remaining_s))
    assert [line["code"] for line in log if line["event"] == "call_ended"] == [code]
