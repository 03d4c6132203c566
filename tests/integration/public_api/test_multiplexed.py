"""Many generations over one call: each is what a call of its own would be, and none disturbs another."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from headrace.client import AsyncClient, InvalidRequest, QueueFull
from headrace.client import aio_multiplexer as multiplexer
from headrace.services.access_list import hash_key
from headrace.services.log import Event
from headrace.shard.engines.fake import FakeOptions
from headrace.shard.engines.fake_oracle import expected_tokens
from headrace.v1 import generate_service_pb2 as pb
from headrace.v1.router_service_pb2 import AbortRequest
from headrace.v1.sampling_pb2 import SamplingParams

Deploy = Callable[..., AbstractAsyncContextManager[Any]]
FOREVER = 100_000


def prompt(number: int) -> list[int]:
    return [100 + (number * 7919 + index * 31) % 40000 for index in range(40)]


def request_of(number: int, count: int = 8, **fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=prompt(number)),
        sampling=SamplingParams(temperature=0.0, seed=5),
        stopping=pb.StoppingRules(max_new_token_count=count, ignore_end_of_sequence=True),
        **fields,
    )


@pytest.fixture
def log() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        yield lines


class Multiplexed:
    """A caller of the method as it is, without our client."""

    def __init__(self, server: Any, **options: Any) -> None:
        self.call = server.generate.GenerateMultiplexed(**options)
        self.events: dict[int, list[pb.GenerationEvent]] = {}
        self.messages: list[pb.GenerateMultiplexedResponse] = []

    async def open(self, stream_id: int, request: pb.GenerateRequest, **opening: Any) -> None:
        message = pb.GenerationOpening(request=request, **opening)
        await self.call.write(pb.GenerateMultiplexedRequest(stream_id=stream_id, open=message))

    async def cancel(self, stream_id: int) -> None:
        await self.call.write(pb.GenerateMultiplexedRequest(stream_id=stream_id, cancel=pb.GenerationCancellation()))

    async def read(self) -> pb.GenerateMultiplexedResponse:
        message = await asyncio.wait_for(self.call.read(), 10)
        if message is grpc.aio.EOF:
            raise EOFError
        self.messages.append(message)
        for event in message.events:
            self.events.setdefault(event.stream_id, []).append(event)
        return message

    async def end_of(self, stream_id: int) -> pb.GenerationEvent:
        """Reads until a generation has ended."""
        while True:
            last = self.events.get(stream_id, [None])[-1]
            if last is not None and (last.HasField("error") or last.response.HasField("finished")):
                return last
            await self.read()

    async def tokens_of(self, stream_id: int, count: int = 1) -> list[int]:
        """Reads until a generation has so many tokens, and returns all it has."""
        while True:
            events = self.events.get(stream_id, [])
            tokens = [token_id for event in events for token_id in event.response.delta.token_ids]
            if len(tokens) >= count:
                return tokens
            await self.read()

    async def read_all(self) -> None:
        """Half-closes the call and reads to its end."""
        await self.call.done_writing()
        await self.read_to_end()

    async def read_to_end(self) -> grpc.StatusCode:
        """Reads what there is until the call has ended, and returns its status, which comes after all messages."""
        with suppress(EOFError, grpc.aio.AioRpcError):
            while True:
                await self.read()
        code: grpc.StatusCode = await asyncio.wait_for(self.call.code(), 10)
        return code


def reason_of(event: pb.GenerationEvent) -> str:
    details = status_pb2.Status.FromString(event.error.status_details)
    assert (details.code, details.message) == (event.error.code, event.error.message)
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in details.details)
    return info.reason


async def test_each_generation_is_what_its_own_call_would_be(deploy: Deploy) -> None:
    async with deploy() as server:
        shared = Multiplexed(server)
        for number in range(1, 21):
            await shared.open(number, request_of(number, 10 + number))
        await shared.read_all()
        assert await shared.call.code() is grpc.StatusCode.OK
        for number in range(1, 21):
            responses = [event.response for event in shared.events[number]]
            kinds = [response.WhichOneof("event") for response in responses]
            assert (kinds[0], kinds[-1], set(kinds[1:-1])) == ("started", "finished", {"delta"})
            tokens = [token_id for response in responses for token_id in response.delta.token_ids]
            assert tuple(tokens) == expected_tokens(prompt(number), 10 + number)
            alone = await server.generate.Generate(request_of(number, 10 + number))
            assert "".join(response.delta.text for response in responses) == alone.completions[0].text
            assert responses[-1].finished.ends[0].generated_token_count == 10 + number
        server.check_integrity()


async def test_generations_share_messages(deploy: Deploy) -> None:
    async with deploy(engine=FakeOptions(step_time_s=0.005)) as server:
        shared = Multiplexed(server)
        for number in range(1, 17):
            await shared.open(number, request_of(number, 30))
        await shared.read_all()
        token_count = sum(len(event.response.delta.token_ids) for events in shared.events.values() for event in events)
        assert token_count == 16 * 30
        assert len(shared.messages) < token_count / 4


async def test_the_mistake_of_one_is_its_own(deploy: Deploy) -> None:
    async with deploy() as server:
        shared = Multiplexed(server)
        wrong = request_of(1)
        wrong.sampling.top_p = 7.0
        await shared.open(1, wrong)
        await shared.open(2, request_of(2, 20))
        await shared.open(3, request_of(3), timeout=Duration())
        await shared.open(4, request_of(4), metadata={"x-long": "x" * 20_000})
        await shared.open(5, request_of(5), metadata={"X-Request-Id": "mine"})
        await shared.open(6, request_of(6), timeout=Duration(seconds=2**62))
        await shared.read_all()
        with pytest.raises(grpc.aio.AioRpcError) as alone:
            await server.generate.Generate(wrong)
        assert shared.events[1][-1].error.message == alone.value.details()
        assert reason_of(shared.events[1][-1]) == "INVALID_REQUEST"
        assert "timeout" in shared.events[3][-1].error.message
        assert "at most 315576000000 s" in shared.events[6][-1].error.message
        assert "metadata" in shared.events[4][-1].error.message
        assert [len(shared.events[number]) for number in (1, 3, 4, 6)] == [1, 1, 1, 1]
        for number in (2, 5):
            assert shared.events[number][-1].response.HasField("finished")


async def test_cancelling_one_frees_its_blocks_and_leaves_the_others(deploy: Deploy) -> None:
    async with deploy(engine=FakeOptions(step_time_s=0.002)) as server:
        shared = Multiplexed(server)
        await shared.open(1, request_of(1, FOREVER))
        await shared.open(2, request_of(2, FOREVER))
        await shared.tokens_of(1)
        await shared.tokens_of(2)
        await shared.cancel(1)
        await shared.cancel(7)  # there is none
        await server.until(lambda: server.stats().running_count == 1)
        seen = len(shared.events[1])
        await shared.tokens_of(2, 200)
        assert len(shared.events[1]) <= seen + 1  # what was on its way
        shared.call.cancel()
        await server.until(lambda: server.stats().running_count == 0)
        server.check_integrity()


async def test_a_deadline_ends_one_alone(deploy: Deploy) -> None:
    async with deploy(engine=FakeOptions(step_time_s=0.002)) as server:
        shared = Multiplexed(server)
        await shared.open(1, request_of(1, FOREVER), timeout=Duration(nanos=50_000_000))
        await shared.open(2, request_of(2, FOREVER))
        ended = await shared.end_of(1)
        assert ended.error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        assert reason_of(ended) == "DEADLINE_EXCEEDED"
        await shared.tokens_of(2, 60)
        shared.call.cancel()
        await server.until(lambda: server.stats().running_count == 0)


async def test_a_generation_can_be_aborted_by_its_id(deploy: Deploy) -> None:
    async with deploy(engine=FakeOptions(step_time_s=0.002)) as server:
        shared = Multiplexed(server)
        await shared.open(1, request_of(1, FOREVER, request_id="mine"))
        await shared.tokens_of(1)
        await server.router.Abort(AbortRequest(request_ids=["mine"]))
        ended = await shared.end_of(1)
        assert ended.response.finished.ends[0].reason == pb.FINISH_REASON_CANCELLED
        await shared.read_all()


@pytest.mark.parametrize(
    ("commands", "field"),
    [
        ([pb.GenerateMultiplexedRequest(stream_id=1)], "command"),
        ([pb.GenerateMultiplexedRequest(stream_id=0, open=pb.GenerationOpening())], "stream_id"),
        ([pb.GenerateMultiplexedRequest(stream_id=2, open=pb.GenerationOpening())] * 2, "stream_id"),
    ],
)
async def test_a_command_that_breaks_the_rules_ends_the_call(
    deploy: Deploy, commands: list[pb.GenerateMultiplexedRequest], field: str
) -> None:
    async with deploy() as server:
        shared = Multiplexed(server)
        for command in commands:
            await shared.call.write(command)
        assert await shared.read_to_end() is grpc.StatusCode.INVALID_ARGUMENT
        assert field in await shared.call.details()


async def test_bytes_that_are_no_command_get_a_status(deploy: Deploy) -> None:
    async with deploy() as server:
        call = server.channel.stream_stream("/headrace.v1.GenerateService/GenerateMultiplexed")()
        await call.write(b"\xff\xff\xff")
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_each_generation_shows_a_key_of_its_own(deploy: Deploy, tmp_path: Path) -> None:
    access_file = tmp_path / "access.toml"
    access_file.write_text(
        "".join(
            f'[keys.{role}]\nsha256 = "{hash_key(f"{role}-key").hex()}"\ntenant = "t"\nroles = ["{role}"]\n'
            for role in ("use", "operate")
        )
    )
    async with deploy(access_file=access_file) as server:
        # What the call itself shows opens nothing.
        shared = Multiplexed(server, metadata=(("authorization", "Bearer use-key"),))
        await shared.open(1, request_of(1))
        await shared.open(2, request_of(2), metadata={"authorization": "Bearer use-key"})
        await shared.open(3, request_of(3), metadata={"authorization": "Bearer operate-key"})
        await shared.read_all()
        assert shared.events[1][-1].error.code == grpc.StatusCode.UNAUTHENTICATED.value[0]
        assert shared.events[2][-1].response.HasField("finished")
        assert shared.events[3][-1].error.code == grpc.StatusCode.PERMISSION_DENIED.value[0]


async def test_each_generation_is_a_call_to_the_log(deploy: Deploy, log: list[Any]) -> None:
    async with deploy() as server:
        shared = Multiplexed(server)
        await shared.open(1, request_of(1), metadata={"x-request-id": "in-a-header"})
        await shared.open(2, request_of(2, request_id="in-the-request"))
        await shared.read_all()
    ended = [line for line in log if line["event"] == Event.CALL_ENDED and line["method"].endswith("/GenerateStream")]
    assert {line["code"] for line in ended} == {"OK"}
    assert all(line["message_count"] >= 3 for line in ended)
    assert {line["request_id"] for line in ended} >= {"in-the-request"}
    assert len(ended) == 2


async def test_a_drain_says_so_and_lets_generations_end(deploy: Deploy) -> None:
    async with deploy(engine=FakeOptions(step_time_s=0.002)) as server:
        shared = Multiplexed(server)
        await shared.open(1, request_of(1, 200))
        await shared.tokens_of(1)
        draining = asyncio.create_task(server.app.drain(asyncio.Event()))
        while not any(message.is_going_away for message in shared.messages):
            await shared.read()
        await shared.open(2, request_of(2))
        refused = await shared.end_of(2)
        assert refused.error.code == grpc.StatusCode.UNAVAILABLE.value[0]
        assert reason_of(refused) == "DRAINING"
        assert (await shared.end_of(1)).response.HasField("finished")
        assert tuple(await shared.tokens_of(1, 200)) == expected_tokens(prompt(1), 200)
        # An idle call holds nobody up.
        await asyncio.wait_for(draining, 10)


async def test_a_reader_that_stalls_is_cut_off_with_all_its_generations(deploy: Deploy) -> None:
    # Log-probabilities, since bare tokens would take long to fill HTTP/2's window.
    output = pb.OutputOptions(token_logprobs=True, top_logprob_count=20)
    narrow = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
    async with deploy(stall_timeout_s=0.3, channel_options=narrow) as server:
        shared = Multiplexed(server)
        for number in range(1, 5):
            await shared.open(number, request_of(number, 4000, output=output))
        await shared.read()
        async with asyncio.timeout(20):
            await server.until(lambda: server.app.pipeline.desk.request_count == 4)
            await server.until(lambda: server.app.pipeline.desk.request_count == 0)
            await server.until(lambda: server.stats().leased_block_count == 0)
        assert await shared.read_to_end() is grpc.StatusCode.CANCELLED
        assert "not read" in await shared.call.details()


async def test_the_client_reads_many_streams_over_one_call(deploy: Deploy) -> None:
    async with deploy() as server, AsyncClient(server.address, multiplexes=True) as client:

        async def tokens(number: int) -> tuple[int, ...]:
            result = await client.stream(
                prompt(number), temperature=0.0, max_new_token_count=12, ignore_end_of_sequence=True
            ).result()
            return result.completions[0].token_ids

        found = await asyncio.gather(*(tokens(number) for number in range(40)))
        assert found == [expected_tokens(prompt(number), 12) for number in range(40)]
        with pytest.raises(InvalidRequest) as caught:
            await client.stream("x", top_p=7.0).result()
        assert caught.value.violations[0].field == "sampling.top_p"


async def test_what_the_server_did_not_admit_is_tried_again(deploy: Deploy) -> None:
    """As gRPC does it with calls: within the deadline, and when the server says so."""
    engine = FakeOptions(step_time_s=0.01)
    async with (
        deploy(engine=engine, step_row_limit=1, waiting_request_limit=1) as server,
        AsyncClient(server.address, multiplexes=True) as client,
    ):
        options: dict[str, Any] = {"max_new_token_count": 20, "ignore_end_of_sequence": True, "temperature": 0.0}
        results = await asyncio.gather(*(client.stream(prompt(number), **options).result() for number in range(4)))
        assert [len(result.completions[0].token_ids) for result in results] == [20] * 4
        no_retries = (("grpc.enable_retries", 0),)
        async with AsyncClient(server.address, multiplexes=True, channel_options=no_retries) as hasty:
            outcomes = await asyncio.gather(
                *(hasty.stream(prompt(number), **options).result() for number in range(4)), return_exceptions=True
            )
        assert any(isinstance(outcome, QueueFull) for outcome in outcomes)


async def test_closing_the_client_ends_what_waits_for_another_try(deploy: Deploy) -> None:
    async with deploy(engine=FakeOptions(step_time_s=0.02), step_row_limit=1, waiting_request_limit=1) as server:
        client = AsyncClient(server.address, multiplexes=True)
        streams = [client.stream(prompt(n), max_new_token_count=2000, ignore_end_of_sequence=True) for n in range(6)]
        reading = [asyncio.create_task(anext(stream, None)) for stream in streams[1:]]
        await anext(streams[0])
        shared = client._channel._multiplexer  # type: ignore[attr-defined]  # nothing else tells that they wait
        await server.until(lambda: bool(shared.waiting))
        await client.close()
        async with asyncio.timeout(1):
            assert await asyncio.gather(*reading) == [None] * 5


async def test_a_client_moves_on_when_the_server_goes_away(deploy: Deploy) -> None:
    async with deploy(engine=FakeOptions(step_time_s=0.002), propagation_s=0.5) as server:
        async with AsyncClient(server.address, multiplexes=True) as client:
            first = client.stream(prompt(1), max_new_token_count=100, ignore_end_of_sequence=True, temperature=0.0)
            await anext(first)
            shared = call_of(client)
            draining = asyncio.create_task(server.app.drain(asyncio.Event()))
            while shared.takes_streams:  # noqa: ASYNC110  # it is told in a message of its own
                await asyncio.sleep(0.001)
            # Late calls are still served, on a call of their own.
            late = await client.stream(prompt(2), max_new_token_count=5, ignore_end_of_sequence=True).result()
            assert len(late.completions[0].token_ids) == 5
            assert len((await first.result()).completions[0].token_ids) == 100
        await asyncio.wait_for(draining, 10)


async def test_old_and_full_calls_take_no_more(deploy: Deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiplexer, "CALL_STREAM_LIMIT", 2)
    async with deploy(engine=FakeOptions(step_time_s=0.002)) as server:
        async with AsyncClient(server.address, multiplexes=True) as client:
            streams = [client.stream(prompt(n), max_new_token_count=300, ignore_end_of_sequence=True) for n in range(5)]
            for stream in streams:
                await anext(stream)
            assert len(calls_of(client)) == 3
            monkeypatch.setattr(multiplexer, "CALL_AGE_LIMIT_S", 0.0)
            streams.append(client.stream(prompt(6), max_new_token_count=10, ignore_end_of_sequence=True))
            await anext(streams[-1])
            assert len(calls_of(client)) == 4
            for stream in streams:
                await stream.result()


def calls_of(client: AsyncClient) -> set[Any]:
    """The calls that a client's streams share, those that take no more included."""
    shared = client._channel._multiplexer  # type: ignore[attr-defined]  # nothing else tells them apart
    assert shared is not None
    return set(shared._open)


def call_of(client: AsyncClient) -> Any:
    (shared,) = calls_of(client)
    return shared
