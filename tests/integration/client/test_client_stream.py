"""Generation streams over a real connection, by both kinds of stream."""

import asyncio
import threading
from contextlib import aclosing
from typing import Any

import grpc
import pytest

from headrace.client import (
    AsyncClient,
    Client,
    FinishReason,
    GenerationStream,
    ReaderStalled,
    ServerUnreachable,
    ShardLost,
    StreamBroken,
)
from headrace.v1 import router_service_pb2

# The shapes of conftest's fixtures; test files cannot import from it.
Server = Any
Script = Any
Fail = Any


@pytest.fixture(params=[False, True], ids=["calls", "multiplexed"])
def multiplexes(request: pytest.FixtureRequest) -> bool:
    """Whether streams share a call; whoever reads them must not notice."""
    return bool(request.param)


WORDS = ["Once ", "upon ", "a ", "time"]


async def test_deltas_arrive_between_started_and_finished(server: Server, multiplexes: bool) -> None:
    async with AsyncClient(server.target, multiplexes=multiplexes) as client:
        stream = client.stream("Once", request_id="r-1")
        started = await stream.wait_started()
        assert (started.request_id, started.prompt_token_count, started.cached_token_count) == ("r-1", 3, 2)
        assert [delta.text async for delta in stream] == WORDS
        assert stream.finished.reason is FinishReason.LENGTH
        assert stream.finished.usage.generated_token_count == 4
        assert stream.time_to_first_token_s is not None
        assert [delta async for delta in stream] == []
        assert (await stream.result()).text == "Once upon a time"
        assert (await stream.wait_started()) is started


async def test_the_synchronous_stream_is_the_same(server: Server) -> None:
    def synchronous() -> GenerationStream:
        with Client(server.target) as client, client.chat_stream([{"role": "user", "content": "Hi"}]) as stream:
            assert stream.wait_started().prompt_token_count == 3
            assert next(stream).text == "Once "
            assert list(stream.texts()) == WORDS[1:]
            assert list(stream) == []
            assert stream.result().text == "Once upon a time"
        return stream

    stream = await asyncio.to_thread(synchronous)
    assert stream.finished.reason is FinishReason.LENGTH
    assert stream.time_to_first_token_s is not None
    assert not stream.is_cancelled


async def test_texts_leaves_out_what_is_empty(server: Server, script: Script, multiplexes: bool) -> None:
    script.words = ("a", "", "b")
    async with AsyncClient(server.target, multiplexes=multiplexes) as client, client.stream("Once") as stream:
        assert [text async for text in stream.texts()] == ["a", "b"]


async def test_a_token_is_there_before_the_next_one_is_made(server: Server, script: Script, multiplexes: bool) -> None:
    script.gate = asyncio.Event()
    async with AsyncClient(server.target, multiplexes=multiplexes) as client, client.stream("Once") as stream:
        assert (await anext(stream)).text == "Once "
        script.gate.set()
        assert (await stream.result()).text == "Once upon a time"


async def test_leaving_the_block_cancels_the_request(server: Server, script: Script, multiplexes: bool) -> None:
    script.gate = asyncio.Event()
    async with AsyncClient(server.target, multiplexes=multiplexes) as client:
        async with client.stream("Once") as stream:
            await anext(stream)
        await asyncio.wait_for(script.cancelled.wait(), 5)
        assert stream.is_cancelled
        assert stream.text == "Once "
        assert [delta async for delta in stream] == []
        with pytest.raises(RuntimeError, match="was cancelled"):
            await stream.result()


async def test_cancel_ends_an_iteration_that_waits(server: Server, script: Script, multiplexes: bool) -> None:
    script.gate = asyncio.Event()
    async with AsyncClient(server.target, multiplexes=multiplexes) as client:
        stream = client.stream("Once")
        await anext(stream)
        rest = asyncio.create_task(stream.result())
        await asyncio.sleep(0)
        stream.cancel()
        with pytest.raises(RuntimeError, match="was cancelled"):
            await rest
        await asyncio.wait_for(script.cancelled.wait(), 5)


async def test_cancel_before_anything_came(server: Server, script: Script, multiplexes: bool) -> None:
    async with AsyncClient(server.target, multiplexes=multiplexes) as client:
        stream = client.stream("Once")
        stream.cancel()
        assert [delta async for delta in stream] == []
        with pytest.raises(RuntimeError, match="has not started"):
            await stream.wait_started()


async def test_cancelling_the_task_cancels_the_request_and_the_task(
    server: Server, script: Script, multiplexes: bool
) -> None:
    script.gate = asyncio.Event()
    async with AsyncClient(server.target, multiplexes=multiplexes) as client:
        stream = client.stream("Once")
        await anext(stream)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await stream.result()
        await asyncio.wait_for(script.cancelled.wait(), 5)
        assert stream.is_cancelled


async def test_cancelling_the_task_of_a_unary_call_cancels_the_request(server: Server, script: Script) -> None:
    script.gate = asyncio.Event()
    async with AsyncClient(server.target) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.generate("Once")
        await asyncio.wait_for(script.cancelled.wait(), 5)


async def test_closing_the_client_ends_its_calls(server: Server, script: Script, multiplexes: bool) -> None:
    script.gate = asyncio.Event()
    script.loads = (router_service_pb2.WatchLoadResponse(),)
    client = AsyncClient(server.target, multiplexes=multiplexes)
    stream = client.stream("Once")
    await anext(stream)
    loads = client.watch_load()
    await anext(loads)
    script.at_gate.clear()
    whole = asyncio.create_task(client.generate("Once"))
    await script.at_gate.wait()
    delta = asyncio.create_task(anext(stream, None))
    load = asyncio.create_task(anext(loads, None))
    await asyncio.sleep(0)
    await client.close()
    assert await delta is None
    assert stream.is_cancelled
    assert await load is None
    with pytest.raises(RuntimeError, match="closed during the call"):
        await whole


async def test_another_thread_can_cancel_the_synchronous_stream(server: Server, script: Script) -> None:
    script.gate = asyncio.Event()

    def synchronous() -> GenerationStream:
        with Client(server.target) as client:
            stream = client.stream("Once")
            next(stream)
            threading.Thread(target=stream.cancel).start()
            assert list(stream) == []
            return stream

    assert (await asyncio.to_thread(synchronous)).is_cancelled
    await asyncio.wait_for(script.cancelled.wait(), 5)


async def test_leaving_the_block_of_the_synchronous_stream_cancels_the_request(server: Server, script: Script) -> None:
    script.gate = asyncio.Event()

    def synchronous() -> None:
        with Client(server.target) as client, client.stream("Once") as stream:
            next(stream)

    await asyncio.to_thread(synchronous)
    await asyncio.wait_for(script.cancelled.wait(), 5)


async def test_a_failure_after_tokens_is_raised_and_never_tried_again(
    server: Server, script: Script, fail: Fail, multiplexes: bool
) -> None:
    script.failure_after_words = fail(code=grpc.StatusCode.ABORTED, reason="SHARD_LOST", message="the shard died")
    async with AsyncClient(server.target, multiplexes=multiplexes) as client:
        stream = client.stream("Once")
        with pytest.raises(ShardLost, match="the shard died") as caught:
            await stream.result()
        assert caught.value.tokens_sent
        assert stream.text == "Once upon a time"
        assert not stream.has_finished
        assert [delta async for delta in stream] == []
    # Not even UNAVAILABLE is, once `started` has arrived.
    script.failure_after_words = fail(code=grpc.StatusCode.UNAVAILABLE, reason="", message="going away")
    async with AsyncClient(server.target, multiplexes=multiplexes) as client:
        with pytest.raises(ServerUnreachable, match="going away"):
            await client.stream("Once").result()
    assert len(script.requests) == 2


async def test_a_failure_in_the_synchronous_stream_is_raised_once(server: Server, script: Script, fail: Fail) -> None:
    script.failure_after_words = fail(code=grpc.StatusCode.CANCELLED, reason="READER_STALLED")

    def synchronous() -> None:
        with Client(server.target) as client:
            stream = client.stream("Once")
            with pytest.raises(ReaderStalled):
                list(stream)
            assert list(stream) == []
            assert stream.text == "Once upon a time"
            assert not stream.is_cancelled

    await asyncio.to_thread(synchronous)


async def test_an_end_without_finished_is_no_success(server: Server, script: Script) -> None:
    script.omits_finished = True
    async with AsyncClient(server.target) as client:
        with pytest.raises(StreamBroken, match="without finished"):
            await client.stream("Once").result()

    def synchronous() -> None:
        with Client(server.target) as client:
            client.stream("Once").result()

    with pytest.raises(StreamBroken, match="without finished"):
        await asyncio.to_thread(synchronous)


async def test_a_server_that_dies_is_a_lost_connection(server: Server, script: Script, multiplexes: bool) -> None:
    script.gate = asyncio.Event()
    async with AsyncClient(server.target, multiplexes=multiplexes) as client:
        stream = client.stream("Once")
        await anext(stream)
        await server.grpc_server.stop(None)
        with pytest.raises(ServerUnreachable):
            await stream.result()


async def test_the_load_is_watched_until_the_watcher_leaves(server: Server, script: Script) -> None:
    script.loads = tuple(
        router_service_pb2.WatchLoadResponse(load=router_service_pb2.Load(running_count=count)) for count in (1, 2, 3)
    )
    async with AsyncClient(server.target) as client:
        async with aclosing(client.watch_load(0.5)) as loads:  # type: ignore[type-var]  # a generator has aclose
            assert [(await anext(loads)).running_count for _ in range(3)] == [1, 2, 3]
        await asyncio.wait_for(script.cancelled.wait(), 5)
    assert script.requests[0].interval.ToMilliseconds() == 500
    assert script.remaining_s == [None]


async def test_the_load_is_watched_synchronously(server: Server, script: Script, fail: Fail) -> None:
    script.loads = (router_service_pb2.WatchLoadResponse(load=router_service_pb2.Load(running_count=1)),)

    def synchronous() -> int:
        with Client(server.target) as client:
            for load in client.watch_load():
                return load.running_count
        return 0

    assert await asyncio.to_thread(synchronous) == 1
    await asyncio.wait_for(script.cancelled.wait(), 5)
    assert not script.requests[0].HasField("interval")
    script.failures.append(fail(code=grpc.StatusCode.CANCELLED, reason="READER_STALLED"))
    with pytest.raises(ReaderStalled):
        await asyncio.to_thread(synchronous)
