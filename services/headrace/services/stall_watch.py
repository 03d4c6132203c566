"""Ends calls whose reader has stopped taking messages."""

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager

from headrace.contract.clock import Clock
from headrace.contract.errors import ReaderStalled


class StallGuard:
    """Watches the writes of one call."""

    __slots__ = ("_clock", "is_stalled", "task", "writing_since_s")

    def __init__(self, clock: Clock, task: "asyncio.Task[object]") -> None:
        self._clock = clock
        self.task = task
        self.writing_since_s: float | None = None
        """When the write that is under way began."""
        self.is_stalled = False

    async def write(self, written: Awaitable[None]) -> None:
        """Waits for a message to be taken by the transport.

        Raises:
            ReaderStalled: it was not, for longer than the server waits.
        """
        self.writing_since_s = self._clock.now()
        try:
            await written
        except asyncio.CancelledError:
            if self.is_stalled:
                raise ReaderStalled("the stream was not read for too long") from None
            raise
        finally:
            self.writing_since_s = None


class StallWatch:
    """Looks at all guarded calls a few times per timeout.

    One look at many calls costs less than a timer for every message. HTTP/2
    flow control counts bytes, so many small messages are taken before a write
    waits at all; what a slow reader leaves behind meanwhile is coalesced.
    """

    def __init__(self, timeout_s: float, clock: Clock) -> None:
        self._timeout_s = timeout_s
        self._clock = clock
        self._guards: set[StallGuard] = set()

    @contextmanager
    def guard(self) -> Iterator[StallGuard]:
        """Watches the calling task's writes inside the block."""
        task = asyncio.current_task()
        assert task is not None, "a handler runs in a task"
        guard = StallGuard(self._clock, task)
        self._guards.add(guard)
        try:
            yield guard
        finally:
            self._guards.discard(guard)

    async def run(self) -> None:
        """Watches until cancelled."""
        while True:
            await asyncio.sleep(self._timeout_s / 4)
            self.look()

    def look(self) -> None:
        """Cancels the calls that have been writing one message for longer than the timeout."""
        too_old_s = self._clock.now() - self._timeout_s
        for guard in self._guards:
            if guard.writing_since_s is not None and guard.writing_since_s < too_old_s and not guard.is_stalled:
                guard.is_stalled = True
                guard.task.cancel()
