"""Around every call: its id, its status, its log line, and a handler that ends with it."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
import structlog
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from headrace.contract.errors import Draining, InvalidRequest, QueueFull, ReaderStalled, ShardLost
from headrace.services.begun_write import BegunWrite
from headrace.services.in_flight import current_call
from headrace.v1 import generate_service_pb2 as pb

from .conftest import Running

REQUEST = pb.GenerateRequest()
DELTA = pb.GenerateStreamResponse(delta=pb.GenerationDelta(text="x"))


@pytest.fixture
def log() -> Iterator[list[dict[str, object]]]:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        yield lines


def ends(log: list[dict[str, object]]) -> list[tuple[object, object]]:
    return [(str(line["method"]).rpartition("/")[2], line["code"]) for line in log if line["event"] == "call_ended"]


async def failure_of(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (read_all(call) if hasattr(call, "read") else call)
    return caught.value


async def read_all(call: Any) -> int:
    """Returns how many messages are left."""
    count = 0
    while await call.read() is not grpc.aio.EOF:
        count += 1
    return count


def info_of(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # the two have the same methods
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info


async def test_an_error_of_the_contract_reaches_a_stock_client_whole(running: Running, log: list) -> None:
    async def refuse() -> pb.GenerateResponse:
        raise QueueFull("512 requests wait", metadata={"limit": "512"}, retry_after_s=1.5)

    running.servicer.unary = refuse
    error = await failure_of(running.stub.Generate(REQUEST, metadata=(("x-request-id", "mine-1"),)))
    assert (error.code(), error.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "512 requests wait")
    info = info_of(error)
    assert (info.domain, info.reason) == ("headrace", "QUEUE_FULL")
    assert dict(info.metadata) == {"limit": "512", "request_id": "mine-1"}
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "1500"
    await running.server.calls.wait_idle()
    [line] = [line for line in log if line["event"] == "call_ended"]
    assert (line["request_id"], line["code"]) == ("mine-1", "RESOURCE_EXHAUSTED")


async def test_a_stream_may_fail_after_messages(running: Running, log: list) -> None:
    async def break_off() -> AsyncIterator[pb.GenerateStreamResponse]:
        yield DELTA
        raise ShardLost("gone", tokens_sent=True)

    running.servicer.stream = break_off
    call = running.stub.GenerateStream(REQUEST)
    assert await call.read() == DELTA
    assert (await failure_of(call)).code() is grpc.StatusCode.ABORTED
    await running.server.calls.wait_idle()
    assert ends(log) == [("GenerateStream", "ABORTED")]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_bug_is_internal_and_told_to_the_log_alone(running: Running, log: list, is_stream: bool) -> None:
    async def fail() -> pb.GenerateResponse:
        raise KeyError("secret")

    async def fail_streaming() -> AsyncIterator[pb.GenerateStreamResponse]:
        yield DELTA
        raise KeyError("secret")

    running.servicer.unary, running.servicer.stream = fail, fail_streaming
    method = running.stub.GenerateStream if is_stream else running.stub.Generate
    error = await failure_of(method(REQUEST))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(error.details())
    assert info_of(error).metadata["request_id"] in str(error.details())
    [crash] = [line for line in log if line["event"] == "call_crashed"]
    assert isinstance(crash["exc_info"], KeyError)


async def test_a_request_without_an_id_gets_one(running: Running) -> None:
    seen: list[str] = []

    async def note() -> pb.GenerateResponse:
        seen.append(current_call().request_id)
        return pb.GenerateResponse()

    running.servicer.unary = note
    await running.stub.Generate(REQUEST)
    await running.stub.Generate(REQUEST, metadata=(("x-request-id", "a b"),))
    await running.stub.Generate(REQUEST, metadata=(("x-request-id", "x" * 129),))
    await running.stub.Generate(REQUEST, metadata=(("x-request-id", "a!~"),))
    assert seen[3] == "a!~"
    assert all(re.fullmatch(r"[0-9a-f]{32}", request_id) for request_id in seen[:3])
    assert len(set(seen)) == 4


async def test_a_cancelled_call_ends_its_handler_at_once(running: Running, log: list) -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[pb.GenerateStreamResponse]:
        try:
            while True:
                yield DELTA
                await asyncio.sleep(0)
        finally:
            closed.set()

    running.servicer.stream = endless
    call = running.stub.GenerateStream(REQUEST)
    await call.read()
    call.cancel()
    await asyncio.wait_for(closed.wait(), 5)
    await running.server.calls.wait_idle()
    assert ends(log) == [("GenerateStream", "CANCELLED")]


async def test_a_deadline_ends_its_handler_and_is_logged_as_one(running: Running, log: list) -> None:
    async def wait() -> pb.GenerateResponse:
        await asyncio.Event().wait()
        raise AssertionError

    running.servicer.unary = wait
    error = await failure_of(running.stub.Generate(REQUEST, timeout=0.5))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(running.server.calls.wait_idle(), 5)
    assert ends(log) == [("Generate", "DEADLINE_EXCEEDED")]


async def test_the_server_can_end_a_call_wherever_it_is(running: Running) -> None:
    async def wait() -> AsyncIterator[pb.GenerateStreamResponse]:
        calls.append(current_call())
        yield DELTA
        await asyncio.Event().wait()

    calls: list = []
    running.servicer.stream = wait
    call = running.stub.GenerateStream(REQUEST)
    await call.read()
    calls[0].end(ReaderStalled("the stream was not read"))
    calls[0].end(Draining("only the first reason counts"))
    error = await failure_of(call)
    assert (error.code(), info_of(error).reason) == (grpc.StatusCode.CANCELLED, "READER_STALLED")


async def test_a_call_that_the_server_ended_holds_up_no_drain_while_its_reader_stalls(running: Running) -> None:
    async def flood() -> AsyncIterator[pb.GenerateStreamResponse]:
        calls.append(current_call())
        while True:
            yield pb.GenerateStreamResponse(delta=pb.GenerationDelta(text="x" * 100_000))

    calls: list = []
    running.servicer.stream = flood
    call = running.stub.GenerateStream(REQUEST)
    await running.servicer.entered.wait()
    count = -1
    while calls[0].message_count != count:  # until HTTP/2 takes no more
        count = calls[0].message_count
        await asyncio.sleep(0.05)
    assert running.server.calls.count == 1
    calls[0].end(ReaderStalled("the stream was not read"))
    await asyncio.wait_for(running.server.calls.wait_idle(), 5)
    call.cancel()


async def test_violations_name_their_fields(running: Running) -> None:
    async def refuse() -> pb.GenerateResponse:
        raise InvalidRequest.of("sampling.top_p", "must be in (0, 1], got 2")

    running.servicer.unary = refuse
    error = await failure_of(running.stub.Generate(REQUEST))
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    bad_request = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(bad_request)
    assert bad_request.field_violations[0].field == "sampling.top_p"


async def test_an_unknown_method_is_unimplemented(running: Running) -> None:
    call = running.channel.unary_unary("/headrace.v1.GenerateService/Guess")(b"")
    assert (await failure_of(call)).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_log_of_a_call_is_data(running: Running, log: list) -> None:
    await running.stub.Generate(REQUEST)
    await running.server.calls.wait_idle()
    [line] = [line for line in log if line["event"] == "call_ended"]
    assert json.loads(json.dumps(line)) == line
    assert line["method"] == "/headrace.v1.GenerateService/Generate"
    assert 0 <= float(str(line["duration_s"])) < 5


async def test_a_write_of_grpc_can_be_driven_without_a_task() -> None:
    # What BegunWrite takes for granted of gRPC: a write gives the message away before its
    # first wait, and waits for nothing but futures that come true by themselves.
    waits: list[bool] = []

    async def relay(_request: bytes, context: Any) -> None:
        for number in range(100):
            write = BegunWrite(context.write(b"%d" % number))
            waits.append(write.is_waiting)
            ready = asyncio.Event()
            while not write.is_done():
                ready.clear()
                write.when_ready(ready.set)
                await ready.wait()

    class Relay(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            return grpc.unary_stream_rpc_method_handler(relay) if details.method == "/test/Relay" else None

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Relay(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        messages = [message async for message in channel.unary_stream("/test/Relay")(b"")]
    await server.stop(None)
    assert messages == [b"%d" % number for number in range(100)]
    assert any(waits)
