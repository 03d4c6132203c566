"""Messages are written one at a time and in order; an error reaches whoever comes next."""

import asyncio

import pytest

from headrace.services.write_queue import WriteQueue


class Wire:
    """Takes a message when the test lets it."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.pending: list[asyncio.Future[None]] = []

    async def write(self, message: int) -> None:
        self.begun.append(message)
        self.pending.append(asyncio.get_running_loop().create_future())
        await self.pending[-1]


async def turn() -> None:
    """Lets callbacks run that are due."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_message_waits_for_the_one_before() -> None:
    wire = Wire()
    queue = WriteQueue(wire.write)
    queue.put(1)
    assert wire.begun == [1]
    assert not queue.is_behind
    queue.put(2)
    queue.put(3)
    assert (wire.begun, queue.is_behind) == ([1], True)
    wire.pending[0].set_result(None)
    await turn()
    assert wire.begun == [1, 2]
    flushing = asyncio.create_task(queue.flush())
    wire.pending[1].set_result(None)
    await turn()
    assert (wire.begun, queue.is_behind, flushing.done()) == ([1, 2, 3], False, False)
    wire.pending[2].set_result(None)
    await flushing


async def test_one_that_is_written_is_seen_by_the_next() -> None:
    wire = Wire()
    queue = WriteQueue(wire.write)
    for number in range(5):
        queue.put(number)
        assert wire.begun[-1] == number
        wire.pending[-1].set_result(None)
    await queue.flush()


async def test_an_error_is_told_and_what_waits_is_dropped() -> None:
    wire = Wire()
    queue = WriteQueue(wire.write)
    queue.put(1)
    queue.put(2)
    wire.pending[0].set_exception(ConnectionError("gone"))
    await turn()
    assert (wire.begun, queue.is_behind) == ([1], False)
    with pytest.raises(ConnectionError, match="gone"):
        queue.put(3)
    with pytest.raises(ConnectionError, match="gone"):
        await queue.flush()
    assert wire.begun == [1]


async def test_a_write_that_fails_at_once_is_told_at_once() -> None:
    async def refuse(message: int) -> None:
        raise ValueError(message)

    queue = WriteQueue(refuse)
    with pytest.raises(ValueError, match="7"):
        queue.put(7)


async def test_what_is_given_up_is_not_written() -> None:
    wire = Wire()
    queue = WriteQueue(wire.write)
    queue.close()
    queue.put(1)
    queue.put(2)
    queue.close()
    queue.close()
    await turn()
    assert wire.begun == [1]
    assert wire.pending[0].cancelled()
    await queue.flush()
