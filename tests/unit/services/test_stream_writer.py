"""Events reach their calls in order, one message at a time, and no call disturbs another."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from headrace.contract.clock import MonotonicClock
from headrace.contract.errors import ShardLost
from headrace.contract.generation import GenerationFinished, GenerationStarted, Timings, Usage
from headrace.router.output_stream import OutputStream
from headrace.services.in_flight import Call
from headrace.services.stall_watch import StallWatch
from headrace.services.stream_writer import CallSink, StreamWriter, WriteRound
from headrace.v1 import generate_service_pb2 as pb

STARTED = GenerationStarted(
    request_id="r", model="m", prompt_token_count=1, cached_token_count=0, seed=1, prompt_logprobs=()
)
FINISHED = GenerationFinished(
    ends=(),
    usage=Usage(prompt_token_count=1, cached_token_count=0, generated_token_count=0),
    timings=Timings(queued_s=0.0, prefill_s=0.0, decode_s=0.0),
)


class FakeCall:
    """What gRPC would write; it takes each message when the test says so, or at once."""

    def __init__(self, write_round: WriteRound, *, is_quick: bool = True) -> None:
        self.messages: list[pb.GenerateStreamResponse] = []
        self.writes: list[asyncio.Future[None]] = []
        self.is_quick = is_quick
        self.stream = OutputStream()
        task = asyncio.current_task()
        assert task is not None
        self.call = Call(method="/m", request_id="r", is_observer=False, task=task)
        self.writer = StreamWriter(self.stream, CallSink(self.write), self.call, write_round, MonotonicClock())
        self.stream.put_started(STARTED)

    async def write(self, message: pb.GenerateStreamResponse) -> None:
        self.messages.append(message)
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.writes.append(taken)
        if self.is_quick:
            taken.set_result(None)
        await taken

    @property
    def token_ids(self) -> list[list[int]]:
        return [list(message.delta.token_ids) for message in self.messages if message.HasField("delta")]

    @contextmanager
    def running(self) -> Iterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.writer.run())
        self.call.task = task
        yield task
        assert task.done()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_every_event_is_written_in_order_and_the_last_one_ends_the_run() -> None:
    call = FakeCall(WriteRound())
    with call.running() as task:
        await turns()
        for token_id in range(3):
            call.stream.put_tokens("x", (token_id,))
            await turns()
        call.stream.finish(FINISHED)
        await task
    kinds = [message.WhichOneof("event") for message in call.messages]
    assert kinds == ["started", "delta", "delta", "delta", "finished"]
    assert call.token_ids == [[0], [1], [2]]
    assert call.call.message_count == 5


async def test_what_comes_while_a_message_is_written_becomes_one() -> None:
    call = FakeCall(WriteRound(), is_quick=False)
    with call.running() as task:
        await turns()
        call.stream.put_tokens("a", (1,))
        call.stream.put_tokens("b", (2,))
        await turns()
        assert call.token_ids == []
        call.writes[0].set_result(None)
        await turns()
        assert call.token_ids == [[1, 2]]
        call.stream.finish(FINISHED)
        await turns()
        assert len(call.messages) == 2
        call.writes[1].set_result(None)
        await turns()
        assert not task.done()
        call.writes[2].set_result(None)
        await task


async def test_all_that_is_new_is_written_in_one_turn() -> None:
    write_round = WriteRound()
    calls = [FakeCall(write_round) for _ in range(3)]
    tasks = [asyncio.create_task(call.writer.run()) for call in calls]
    await turns()
    for call in calls:
        call.stream.put_tokens("a", (1,))
        call.stream.put_tokens("b", (2,))
    assert all(call.token_ids == [] for call in calls)
    await asyncio.sleep(0)
    assert all(call.token_ids == [[1, 2]] for call in calls)
    for call in calls:
        call.stream.finish(FINISHED)
    await asyncio.gather(*tasks)


async def test_a_call_that_breaks_or_fails_to_convert_ends_alone() -> None:
    write_round = WriteRound()
    broken, unconvertible, failed, fine = (FakeCall(write_round) for _ in range(4))
    tasks = [asyncio.create_task(call.writer.run()) for call in (broken, unconvertible, failed, fine)]
    await turns()
    broken.is_quick = False
    for call in (broken, fine):
        call.stream.put_tokens("a", (1,))
    unconvertible.stream.put_tokens("a", (-1,))
    failed.stream.put_tokens("a", (1,))
    failed.stream.fail(ShardLost("lost"))
    await turns()
    broken.writes[-1].set_exception(ConnectionError("gone"))
    broken.stream.put_tokens("b", (2,))
    fine.stream.put_tokens("b", (2,))
    await turns()
    fine.stream.finish(FINISHED)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [ConnectionError, ValueError, ShardLost, type(None)]
    # The tokens that came before the error were written.
    assert failed.token_ids == [[1]]
    assert fine.token_ids == [[1], [2]]


async def test_a_cancelled_run_gives_up_its_write_and_writes_nothing_more() -> None:
    call = FakeCall(WriteRound(), is_quick=False)
    with call.running() as task:
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert call.writes[0].cancelled()
    call.stream.put_tokens("a", (1,))
    await turns()
    assert len(call.messages) == 1


async def test_a_writer_is_stalled_only_while_its_message_is_not_taken() -> None:
    class Clock:
        now_s = 0.0

        def now(self) -> float:
            return self.now_s

    clock = Clock()
    call = FakeCall(WriteRound(), is_quick=False)
    watch = StallWatch(1.0, clock)
    call.writer = StreamWriter(call.stream, CallSink(call.write), call.call, WriteRound(), clock)
    with watch.watch(call.writer), call.running() as task:
        await turns()
        call.writes[0].set_result(None)
        clock.now_s = 5.0
        watch.look()
        assert call.call.ended_by is None
        call.stream.put_tokens("a", (1,))
        await turns()
        clock.now_s = 5.9
        watch.look()
        assert call.call.ended_by is None
        clock.now_s = 6.0
        watch.look()
        assert call.call.ended_by is not None
        with pytest.raises(asyncio.CancelledError):
            await task
