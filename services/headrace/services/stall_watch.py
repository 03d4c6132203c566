"""Ends calls whose reader has stopped taking messages."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from headrace.contract.clock import Clock
from headrace.contract.errors import ReaderStalled
from headrace.services.in_flight import Call


class Watched(Protocol):
    """Whoever writes the messages of one call."""

    @property
    def call(self) -> Call:
        """The call to end."""
        ...

    @property
    def writing_since_s(self) -> float | None:
        """When the write that is under way began; None while none is."""
        ...


class StallWatch:
    """Looks at all watched calls a few times per timeout.

    One look at many calls costs less than a timer for every message. HTTP/2
    flow control counts bytes, so many small messages are taken before a write
    waits at all; what a slow reader leaves behind meanwhile is coalesced.
    """

    def __init__(self, timeout_s: float, clock: Clock) -> None:
        self._timeout_s = timeout_s
        self._clock = clock
        self._watched: set[Watched] = set()

    @contextmanager
    def watch(self, writer: Watched) -> Iterator[None]:
        """Watches the writes of a call inside the block."""
        self._watched.add(writer)
        try:
            yield
        finally:
            self._watched.discard(writer)

    async def run(self) -> None:
        """Watches until cancelled."""
        while True:
            await asyncio.sleep(self._timeout_s / 4)
            self.look()

    def look(self) -> None:
        """Ends the calls that have been writing one message for longer than the timeout."""
        too_old_s = self._clock.now() - self._timeout_s
        for writer in self._watched:
            since_s = writer.writing_since_s
            if since_s is not None and since_s <= too_old_s:
                writer.call.end(ReaderStalled(f"the stream was not read for {self._timeout_s:g} s"))
