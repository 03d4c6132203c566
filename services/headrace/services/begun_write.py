"""A write to a call that was begun at once, and that needs no task to wait for it."""

import asyncio
from collections.abc import Callable, Coroutine


class BegunWrite:
    """Runs a coroutine up to its first wait, and on when it is asked.

    A task would take a turn of the event loop to begin a write and another one
    to learn that it is done. With one short message per token these turns cost
    more than the message. Here the write begins in the constructor, and whether
    it is done is seen when the next message comes.

    The coroutine may wait for asyncio's futures only, which is all that a write
    of gRPC does, and is driven in the way that `asyncio.Task` does it.
    """

    __slots__ = ("_coroutine", "_waits_for")

    def __init__(self, coroutine: Coroutine[asyncio.Future[None], None, None]) -> None:
        """Begins.

        Raises:
            Exception: whatever the coroutine raises before its first wait.
        """
        self._coroutine = coroutine
        self._waits_for: asyncio.Future[None] | None
        try:
            self._waits_for = coroutine.send(None)
        except StopIteration:
            self._waits_for = None

    def is_done(self) -> bool:
        """Goes on as far as possible; returns whether that was to the end.

        Raises:
            Exception: whatever the coroutine raises.
        """
        while self._waits_for is not None:
            if not self._waits_for.done():
                return False
            try:
                self._waits_for = self._coroutine.send(None)
            except StopIteration:
                self._waits_for = None
        return True

    @property
    def is_waiting(self) -> bool:
        """Whether what it waits for has not happened. Changes nothing."""
        return self._waits_for is not None and not self._waits_for.done()

    def when_ready(self, notify: Callable[[], None]) -> None:
        """Calls `notify` once, from the event loop, when `is_done` can go on."""
        assert self._waits_for is not None, "it is done"
        self._waits_for.add_done_callback(lambda _: notify())

    def close(self) -> None:
        """Gives it up, like a cancelled task. Safe to repeat and when it is done."""
        waits_for, self._waits_for = self._waits_for, None
        if waits_for is not None and not waits_for.cancel() and not waits_for.cancelled():
            waits_for.exception()  # nobody else will look at it
        self._coroutine.close()
