"""Events of many generations share messages, and no generation waits for more than its own."""

import asyncio

import pytest

from headrace.contract.clock import MonotonicClock
from headrace.services import joined_write
from headrace.services.in_flight import Call
from headrace.services.joined_write import JoinedWrite, Outbox
from headrace.v1 import generate_service_pb2 as pb


class FakeCall:
    """What gRPC would write; it takes each message when the test says so, or at once."""

    def __init__(self, *, is_quick: bool = True) -> None:
        self.messages: list[pb.GenerateMultiplexedResponse] = []
        self.writes: list[asyncio.Future[None]] = []
        self.is_quick = is_quick
        task = asyncio.current_task()
        assert task is not None
        self.outbox = Outbox(
            self.write, Call(method="/m", request_id="r", is_observer=True, task=task), MonotonicClock()
        )

    async def write(self, message: pb.GenerateMultiplexedResponse) -> None:
        self.messages.append(message)
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.writes.append(taken)
        if self.is_quick:
            taken.set_result(None)
        await taken

    def put(self, stream_id: int, text: str = "x") -> JoinedWrite:
        event, joined = self.outbox.add(stream_id)
        event.response.delta.text = text
        return joined

    @property
    def stream_ids(self) -> list[list[int]]:
        return [[event.stream_id for event in message.events] for message in self.messages]


async def turns() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def test_what_comes_in_one_turn_is_one_message() -> None:
    call = FakeCall()
    first, second = call.put(1), call.put(2)
    assert first is second
    assert first.is_waiting
    assert not call.messages
    await first.wait()
    assert call.stream_ids == [[1, 2]]
    assert not first.is_waiting
    call.put(3)
    await turns()
    assert call.stream_ids == [[1, 2], [3]]


async def test_what_comes_during_a_write_is_the_next_message() -> None:
    call = FakeCall(is_quick=False)
    first = call.put(1)
    await turns()
    assert call.outbox.writing_since_s is not None
    later = [call.put(2), call.put(3)]
    await turns()
    assert call.stream_ids == [[1]]
    assert not first.is_done()
    call.writes[0].set_result(None)
    await first.wait()
    await turns()
    assert call.stream_ids == [[1], [2, 3]]
    assert not later[0].is_done()
    call.writes[1].set_result(None)
    await asyncio.gather(*(joined.wait() for joined in later))
    assert call.outbox.writing_since_s is None


async def test_giving_one_up_leaves_the_others_alone() -> None:
    call = FakeCall(is_quick=False)
    given_up, kept = call.put(1), call.put(2)
    await turns()
    given_up.close()
    call.writes[0].set_result(None)
    await kept.wait()


async def test_a_broken_call_is_told_to_everyone_on_it() -> None:
    call = FakeCall(is_quick=False)
    first, second, later = call.put(1), call.put(2), None
    waiting = [asyncio.create_task(joined.wait()) for joined in (first, second)]
    await turns()
    later = call.put(3)
    call.writes[0].set_exception(ConnectionError("gone"))
    for task in waiting:
        with pytest.raises(ConnectionError, match="gone"):
            await task
    await turns()
    call.writes[1].set_exception(ConnectionError("still gone"))
    with pytest.raises(ConnectionError, match="still gone"):
        await later.wait()


async def test_no_event_is_refused_for_its_company(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined_write, "JOINED_SIZE_LIMIT_BYTES", 100)
    call = FakeCall()
    joined = [call.put(stream_id, "x" * 60) for stream_id in (1, 2, 3)]
    call.outbox.announce_departure()
    await joined[0].wait()
    assert call.stream_ids == [[1], [2], [3]]
    assert call.messages[0].is_going_away


async def test_the_departure_needs_no_event() -> None:
    call = FakeCall()
    call.outbox.announce_departure()
    await turns()
    assert call.messages == [pb.GenerateMultiplexedResponse(is_going_away=True)]
