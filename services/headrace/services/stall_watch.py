"""Ends calls whose reader has stopped taking messages."""

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager

from headrace.contract.clock import Clock
from headrace.contract.errors import ReaderStalled
from headrace.services.in_flight import Call, current_call


class StallGuard:
    """Watches the writes of one call."""

    __slots__ = ("_clock", "call", "writing_since_s")

    def __init__(self, call: Call, clock: Clock) -> None:
        self.call = call
        self.writing_since_s: float | None = None
        """When the write that is under way began."""
        self._clock = clock

    async def write(self, written: Awaitable[None]) -> None:
        """Waits for a message to be taken by the transport."""
        self.writing_since_s = self._clock.now()
        await written
        self.writing_since_s = None
        self.call.message_count += 1


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
        """Watches the writes of the current call inside the block."""
        guard = StallGuard(current_call(), self._clock)
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
        """Ends the calls that have been writing one message for longer than the timeout."""
        too_old_s = self._clock.now() - self._timeout_s
        for guard in self._guards:
            if guard.writing_since_s is not None and guard.writing_since_s <= too_old_s:
                guard.call.end(ReaderStalled(f"the stream was not read for {self._timeout_s:g} s"))
