"""A write that was begun at once goes on when it is asked, and ends like a task."""

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any

import pytest

from headrace.services.begun_write import BegunWrite


class Transport:
    """Takes writes, and says that they are done when the test wants it."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.flushed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def write(self) -> None:
        self.steps.append("begun")
        try:
            await self.taken
            self.steps.append("taken")
            await self.flushed
            self.steps.append("flushed")
        finally:
            self.steps.append("left")


async def test_a_write_begins_in_the_same_turn_and_goes_on_when_asked() -> None:
    transport = Transport()
    write = BegunWrite(transport.write())
    assert transport.steps == ["begun"]
    assert write.is_waiting
    assert not write.is_done()

    transport.taken.set_result(None)
    assert not write.is_waiting
    assert transport.steps == ["begun"]
    assert not write.is_done()
    assert transport.steps == ["begun", "taken"]

    transport.flushed.set_result(None)
    assert write.is_done()
    assert transport.steps == ["begun", "taken", "flushed", "left"]
    assert write.is_done()


async def test_a_write_that_never_waits_is_done_at_once() -> None:
    async def write() -> None:
        return

    assert BegunWrite(write()).is_done()


async def test_what_a_write_raises_comes_out_where_it_goes_on() -> None:
    async def write() -> None:
        raise ValueError("no message")

    with pytest.raises(ValueError, match="no message"):
        BegunWrite(write())
    transport = Transport()
    begun = BegunWrite(transport.write())
    transport.taken.set_exception(ConnectionError("gone"))
    with pytest.raises(ConnectionError, match="gone"):
        begun.is_done()
    begun.close()


async def test_somebody_is_called_when_a_write_can_go_on() -> None:
    transport = Transport()
    write = BegunWrite(transport.write())
    called = asyncio.Event()
    write.when_ready(called.set)
    await asyncio.sleep(0)
    assert not called.is_set()
    transport.taken.set_result(None)
    await called.wait()


@pytest.mark.parametrize("outcome", [None, ConnectionError("gone")])
async def test_a_write_that_is_given_up_leaves_its_coroutine_and_nothing_behind(outcome: Exception | None) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    transport = Transport()
    write = BegunWrite(transport.write())
    if outcome is not None:
        transport.taken.set_exception(outcome)
    write.close()
    write.close()
    assert transport.steps == ["begun", "left"]
    assert transport.taken.cancelled() is (outcome is None)
    del write, transport
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []


async def test_closing_a_finished_write_does_nothing() -> None:
    async def write() -> None:
        return

    coroutine: Coroutine[Any, Any, None] = write()
    begun = BegunWrite(coroutine)
    begun.close()
    assert begun.is_done()
