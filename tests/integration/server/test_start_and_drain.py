"""A server comes up NOT_SERVING and goes away without failing an accepted call."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headrace.contract.errors import Draining, StartupError
from headrace.services.address import clear_for_listening, parse_address
from headrace.services.channel_options import ServerLimits
from headrace.services.grpc_server import DrainTimes
from headrace.v1 import generate_service_pb2 as pb

from .conftest import Running, run_server

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
NAME = "headrace.v1.GenerateService"
REQUEST = pb.GenerateRequest()


def health_stub(running: Running) -> Any:
    return health_pb2_grpc.HealthStub(running.channel)


def refuse_new(running: Running) -> None:
    async def refuse() -> pb.GenerateResponse:
        raise Draining("the server is going away", retry_after_s=1.0)

    running.servicer.unary = refuse


@pytest.mark.parametrize("service", ["", NAME])
async def test_health_follows_the_application(running: Running, service: str) -> None:
    request = health_pb2.HealthCheckRequest(service=service)
    watch = health_stub(running).Watch(request)
    assert (await watch.read()).status == NOT_SERVING
    assert (await health_stub(running).Check(request)).status == NOT_SERVING
    await running.server.set_serving(is_serving=True)
    assert (await watch.read()).status == SERVING
    await running.server.set_serving(is_serving=False)
    assert (await watch.read()).status == NOT_SERVING
    watch.cancel()


async def test_an_unknown_service_is_not_found_and_its_watch_stays_open(running: Running) -> None:
    request = health_pb2.HealthCheckRequest(service="none")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_stub(running).Check(request)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watch = health_stub(running).Watch(request)
    assert (await watch.read()).status == SERVICE_UNKNOWN
    assert not watch.done()
    watch.cancel()


async def test_a_drain_in_order(running: Running) -> None:
    """Watch says NOT_SERVING, late calls are served, new ones refused, running ones end, watches end."""
    may_end = asyncio.Event()

    async def slow() -> AsyncIterator[pb.GenerateStreamResponse]:
        yield pb.GenerateStreamResponse()
        await may_end.wait()
        yield pb.GenerateStreamResponse()

    running.servicer.stream = slow
    refused = asyncio.Event()

    def refuse() -> None:
        refuse_new(running)
        refused.set()

    await running.server.set_serving(is_serving=True)
    watch = health_stub(running).Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == SERVING
    stream = running.stub.GenerateStream(REQUEST)
    await stream.read()

    times = DrainTimes(propagation_s=0.2, timeout_s=30.0)
    drain = asyncio.create_task(running.server.drain(times, refuse=refuse, hurry=asyncio.Event()))
    assert (await watch.read()).status == NOT_SERVING
    await running.stub.Generate(REQUEST)
    assert not refused.is_set()
    await refused.wait()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.stub.Generate(REQUEST)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
    await running.server.set_serving(is_serving=True)  # the application may not know yet; it changes nothing
    assert not drain.done()
    assert not watch.done()
    may_end.set()
    assert await stream.read() == pb.GenerateStreamResponse()
    assert await stream.read() is grpc.aio.EOF
    await asyncio.wait_for(drain, 5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watch.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    clear_for_listening(parse_address(running.address))  # nobody listens any more


async def test_the_clean_up_of_a_failing_call_is_waited_for(running: Running) -> None:
    """`grpc.aio.Server.stop` would not: the status is sent while the handler still ends."""
    has_cleaned_up = False

    async def fail() -> AsyncIterator[pb.GenerateStreamResponse]:
        nonlocal has_cleaned_up
        try:
            yield pb.GenerateStreamResponse()
            raise Draining("no")
        finally:
            await asyncio.sleep(0.1)
            has_cleaned_up = True

    running.servicer.stream = fail
    stream = running.stub.GenerateStream(REQUEST)
    await stream.read()
    times = DrainTimes(propagation_s=0.0, timeout_s=30.0)
    await running.server.drain(times, refuse=lambda: None, hurry=asyncio.Event())
    assert has_cleaned_up


@pytest.mark.parametrize("is_hurried", [False, True], ids=["too slow", "second signal"])
async def test_what_does_not_end_is_ended(running: Running, is_hurried: bool) -> None:
    async def endless() -> AsyncIterator[pb.GenerateStreamResponse]:
        yield pb.GenerateStreamResponse()
        await asyncio.Event().wait()

    async def wait() -> pb.GenerateResponse:
        await asyncio.Event().wait()
        raise AssertionError

    running.servicer.stream, running.servicer.unary = endless, wait
    stream = running.stub.GenerateStream(REQUEST)
    await stream.read()
    running.servicer.entered.clear()
    unary = asyncio.ensure_future(running.stub.Generate(REQUEST))
    await running.servicer.entered.wait()
    hurry = asyncio.Event()
    times = (
        DrainTimes(propagation_s=60.0, timeout_s=60.0) if is_hurried else DrainTimes(propagation_s=0, timeout_s=0.05)
    )
    if is_hurried:
        hurry.set()
    await asyncio.wait_for(running.server.drain(times, refuse=lambda: None, hurry=hurry), 5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert caught.value.code() is grpc.StatusCode.ABORTED  # a part of the answer was sent
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await unary
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_drain_without_calls_takes_its_propagation_time_alone(running: Running) -> None:
    await running.stub.Generate(REQUEST)
    times = DrainTimes(propagation_s=0.0, timeout_s=60.0)
    await asyncio.wait_for(running.server.drain(times, refuse=lambda: None, hurry=asyncio.Event()), 1)


async def test_a_port_is_never_shared(running: Running) -> None:
    async with run_server("127.0.0.1:0") as first:
        with pytest.raises(StartupError, match="in use"):
            async with run_server(first.address):
                raise AssertionError
    with pytest.raises(StartupError, match="another process listens"):
        async with run_server(running.address):
            raise AssertionError


async def test_others_reach_it_only_if_asked_for() -> None:
    with pytest.raises(StartupError, match="--insecure"):
        async with run_server("0.0.0.0:0"):
            raise AssertionError
    async with run_server("0.0.0.0:0", allows_remote_plaintext=True) as open_server:
        assert open_server.address.startswith("0.0.0.0:")


@pytest.mark.parametrize("is_request", [True, False], ids=["request", "response"])
async def test_a_message_over_the_limit_says_so(tmp_path: Path, is_request: bool) -> None:
    limits = ServerLimits(message_size_limit_bytes=1000)

    async def answer() -> pb.GenerateResponse:
        return pb.GenerateResponse(model="x" * 2000)

    async with run_server(f"unix:{tmp_path}/small.sock", limits) as small:
        small.servicer.unary = answer
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await small.stub.Generate(pb.GenerateRequest(text="x" * 2000 if is_request else ""))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "1000" in str(caught.value.details())


async def test_headers_over_the_limit_are_refused(running: Running) -> None:
    await running.stub.Generate(REQUEST, metadata=[("x-a", "a" * 15_000)])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.stub.Generate(REQUEST, metadata=[("x-a", "a" * 17_000)])
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "metadata" in str(caught.value.details())
