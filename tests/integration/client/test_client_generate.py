"""Generation over a real connection, by both clients: options, answers, errors, deadlines and retries."""

import asyncio
import time
from typing import Any

import grpc
import pytest

from headrace.client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    Draining,
    FinishReason,
    Generation,
    InvalidRequest,
    Message,
    QueueFull,
    ReaderStalled,
    ServerStatusError,
    ServerUnreachable,
    status_code,
)
from headrace.v1 import generate_service_pb2 as pb

# The shapes of conftest's fixtures; test files cannot import from it.
Server = Any
Script = Any
Fail = Any

NO_RETRIES = [("grpc.enable_retries", 0)]


async def test_an_answer_comes_back_whole(server: Server, script: Script) -> None:
    async with AsyncClient(server.target) as client:
        answer = await client.generate("Once", model="m", max_new_token_count=4, seed=7, request_id="r-1")
    assert isinstance(answer, Generation)
    assert (answer.text, answer.token_ids) == ("Once upon a time", (0, 1, 2, 3))
    assert (answer.request_id, answer.model, answer.seed) == ("r-1", "m", 7)
    assert answer.reason is FinishReason.LENGTH
    assert answer.usage.generated_token_count == 4
    (request,) = script.requests
    expected = pb.GenerateRequest(text="Once", model="m", request_id="r-1")
    expected.sampling.seed = 7
    expected.stopping.max_new_token_count = 4
    assert request == expected


async def test_both_clients_send_and_read_the_same(server: Server, script: Script) -> None:
    messages = [Message("user", "Why?")]
    async with AsyncClient(server.target) as client:
        first = [await client.generate([1, 2, 3], top_p=0.5), await client.chat(messages, temperature=0.0)]

    def synchronous() -> list[Generation]:
        with Client(server.target) as client:
            return [client.generate([1, 2, 3], top_p=0.5), client.chat(messages, temperature=0.0)]

    assert await asyncio.to_thread(synchronous) == first
    assert script.requests[:2] == script.requests[2:]
    assert script.requests[1].chat.messages[0].content[0].text == "Why?"


async def test_headers_carry_the_request_id_and_what_the_caller_adds(server: Server, script: Script) -> None:
    async with AsyncClient(server.target, metadata={"Authorization": "Bearer x"}) as client:
        await client.generate("Once", request_id="r-1", metadata={"traceparent": "00-1-2-01"})
        await client.generate("Once")
    assert script.headers[0]["x-request-id"] == "r-1"
    assert script.headers[0]["authorization"] == "Bearer x"
    assert script.headers[0]["traceparent"] == "00-1-2-01"
    assert "x-request-id" not in script.headers[1]
    assert str(script.headers[1]["user-agent"]).startswith("headrace-python")


async def test_every_call_has_a_deadline_unless_told_otherwise(server: Server, script: Script) -> None:
    async with AsyncClient(server.target) as client:
        await client.generate("Once")
        await client.generate("Once", deadline_s=5.0)
        await client.generate("Once", deadline_s=None)
    default_s, told_s, none_s = script.remaining_s
    # gRPC rounds a timeout up to send it.
    assert 100 < default_s < 121
    assert 0 < told_s < 6
    assert none_s is None


async def test_an_error_is_the_servers_own_with_its_status_as_cause(server: Server, script: Script, fail: Fail) -> None:
    failure = fail(
        code=grpc.StatusCode.RESOURCE_EXHAUSTED, reason="QUEUE_FULL", message="8 of 8 wait", retry_after_s=1.5
    )
    script.failures += [failure, failure]
    async with AsyncClient(server.target, channel_options=NO_RETRIES) as client:
        with pytest.raises(QueueFull, match="8 of 8 wait") as caught:
            await client.generate("Once")
    assert caught.value.retry_after_s == 1.5
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    assert status_code(caught.value) is grpc.StatusCode.RESOURCE_EXHAUSTED

    def synchronous() -> None:
        with Client(server.target, channel_options=NO_RETRIES) as client:
            client.generate("Once")

    with pytest.raises(QueueFull, match="8 of 8 wait") as caught:
        await asyncio.to_thread(synchronous)
    assert caught.value.retry_after_s == 1.5
    assert status_code(caught.value) is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_cancelled_by_the_server_is_an_error_and_no_cancellation_of_the_task(
    server: Server, script: Script, fail: Fail
) -> None:
    failure = fail(code=grpc.StatusCode.CANCELLED, reason="READER_STALLED", message="stopped reading")
    script.failures += [failure, failure, failure]
    async with AsyncClient(server.target) as client:
        with pytest.raises(ReaderStalled, match="stopped reading"):
            await client.generate("Once")
        with pytest.raises(ReaderStalled, match="stopped reading"):
            await client.stream("Once").result()

    def synchronous() -> None:
        with Client(server.target) as client:
            client.stream("Once").result()

    with pytest.raises(ReaderStalled, match="stopped reading"):
        await asyncio.to_thread(synchronous)


async def test_a_value_that_does_not_fit_never_leaves(server: Server, script: Script) -> None:
    async with AsyncClient(server.target) as client:
        with pytest.raises(InvalidRequest, match=r"^sampling\.seed: "):
            await client.generate("Once", seed=-1)
        with pytest.raises(InvalidRequest, match=r"^sampling\.seed: "):
            client.stream("Once", seed=-1)
        with pytest.raises(TypeError, match="did you mean 'deadline_s'"):
            await client.get_load(deadline=5)  # type: ignore[call-arg]
    assert script.requests == []


async def test_a_full_server_is_asked_again_when_it_said(server: Server, script: Script, fail: Fail) -> None:
    script.failures += 2 * [
        fail(code=grpc.StatusCode.RESOURCE_EXHAUSTED, reason="QUEUE_FULL", retry_after_s=0.15, pushback_ms=150)
    ]
    begun_s = time.monotonic()
    async with AsyncClient(server.target) as client:
        answer = await client.stream("Once", request_id="same").result()
    assert answer.text == "Once upon a time"
    assert [request.request_id for request in script.requests] == ["same"] * 3
    # Its own backoff could have been as short as 80 ms.
    assert time.monotonic() - begun_s >= 0.3


async def test_a_draining_server_is_asked_again_by_the_synchronous_client_too(
    server: Server, script: Script, fail: Fail
) -> None:
    script.failures += 2 * [fail(code=grpc.StatusCode.UNAVAILABLE, reason="DRAINING", pushback_ms=1)]

    def synchronous() -> str:
        with Client(server.target) as client:
            return client.generate("Once").text

    assert await asyncio.to_thread(synchronous) == "Once upon a time"
    assert len(script.requests) == 3


async def test_retries_end_with_the_servers_last_word(server: Server, script: Script, fail: Fail) -> None:
    script.failures += 9 * [fail(code=grpc.StatusCode.UNAVAILABLE, reason="DRAINING", pushback_ms=1)]
    async with AsyncClient(server.target) as client:
        with pytest.raises(Draining):
            await client.generate("Once")
    assert len(script.requests) == 5


async def test_a_server_can_forbid_retries(server: Server, script: Script, fail: Fail) -> None:
    script.failures += [fail(code=grpc.StatusCode.UNAVAILABLE, reason="DRAINING", pushback_ms=-1)]
    async with AsyncClient(server.target) as client:
        with pytest.raises(Draining):
            await client.generate("Once")
    assert len(script.requests) == 1


async def test_what_waiting_does_not_help_is_not_tried_again(server: Server, script: Script, fail: Fail) -> None:
    script.failures += [fail(code=grpc.StatusCode.INTERNAL, reason="MOON_PHASE")]
    async with AsyncClient(server.target) as client:
        with pytest.raises(ServerStatusError) as caught:
            await client.generate("Once")
    assert caught.value.reason == "MOON_PHASE"
    assert len(script.requests) == 1


async def test_a_prompt_larger_than_grpcs_own_retry_buffer_is_tried_again(
    server: Server, script: Script, fail: Fail
) -> None:
    script.failures += [fail(code=grpc.StatusCode.UNAVAILABLE, reason="DRAINING", pushback_ms=1)]
    async with AsyncClient(server.target) as client:
        assert (await client.generate("x" * 1_000_000)).text == "Once upon a time"
    assert len(script.requests) == 2


async def test_a_message_over_the_limit_is_refused_on_this_side(server: Server, script: Script) -> None:
    async with AsyncClient(server.target, message_size_limit_bytes=1000) as client:
        with pytest.raises(ServerStatusError, match="larger than max") as caught:
            await client.generate("x" * 2000)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert script.requests == []


async def test_the_deadline_ends_a_call(server: Server, script: Script) -> None:
    script.gate = asyncio.Event()
    async with AsyncClient(server.target) as client:
        with pytest.raises(DeadlineExceeded):
            await client.generate("Once", deadline_s=0.2)
        stream = client.stream("Once", deadline_s=0.2)
        with pytest.raises(DeadlineExceeded):
            await stream.result()
    assert stream.text == "Once "
    assert len(script.requests) == 2


async def test_a_server_that_is_not_there_is_named() -> None:
    async with AsyncClient("127.0.0.1:1", channel_options=NO_RETRIES) as client:
        with pytest.raises(ServerUnreachable, match=r"^no connection to 127\.0\.0\.1:1: "):
            await client.generate("Once")
        with pytest.raises(DeadlineExceeded):
            await client.generate("Once", wait_for_ready=True, deadline_s=0.1)


async def test_a_closed_client_says_so(server: Server) -> None:
    client = AsyncClient(server.target)
    await client.generate("Once")
    await client.close()
    await client.close()
    with pytest.raises(RuntimeError, match="the client is closed"):
        await client.generate("Once")
    synchronous = Client(server.target)
    synchronous.close()
    synchronous.close()
    with pytest.raises(RuntimeError, match="the client is closed"):
        synchronous.generate("Once")


async def test_a_client_made_before_its_loop_works_and_stays_with_it(server: Server) -> None:
    client = await asyncio.to_thread(AsyncClient, server.target)
    await client.generate("Once")

    def elsewhere() -> None:
        asyncio.run(client.generate("Once"))  # type: ignore[arg-type]

    with pytest.raises(RuntimeError, match="another event loop"):
        await asyncio.to_thread(elsewhere)
    await client.close()


async def test_calls_take_turns_among_the_servers_that_serve(server: Server, serve: Any) -> None:
    async with serve() as other, AsyncClient([server.target, other.target]) as client:
        # Turns are fair only once both connections stand.
        while not (server.script.requests and other.script.requests):
            await client.generate("Once")
        counts = [len(server.script.requests), len(other.script.requests)]
        for _ in range(6):
            await client.generate("Once")
        assert [len(server.script.requests), len(other.script.requests)] == [count + 3 for count in counts]

        await other.set_serving(is_serving=False)
        # The news travels on a stream of its own: calls go to both until it has arrived.
        seen_count = -1
        while seen_count != len(other.script.requests):
            seen_count = len(other.script.requests)
            await client.generate("Once")
            await client.generate("Once")
        for _ in range(6):
            await client.generate("Once")
        assert len(other.script.requests) == seen_count
