"""Messages for one call, written one after another without a task."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Generic, TypeVar

from headrace.services.begun_write import BegunWrite

Message = TypeVar("Message")


class WriteQueue(Generic[Message]):
    """Begins each write as soon as the one before is done. Use on the event loop.

    NOTE: a task that takes messages from a queue is woken for each of them, and a step of a small model is short: the
    turns of the event loop and what gRPC does around an iterator took as long as the write itself.
    """

    def __init__(self, write: Callable[[Message], Coroutine[asyncio.Future[None], None, None]]) -> None:
        """Takes what writes a message, such as `ServicerContext.write`. It waits for asyncio's futures only."""
        self._write = write
        self._waiting: deque[Message] = deque()
        self._under_way: BegunWrite | None = None
        self._is_watched = False
        """Whether the write that is under way tells when it is done."""
        self._error: Exception | None = None

    @property
    def is_behind(self) -> bool:
        """Whether a message waits for the one before to be written."""
        return bool(self._waiting)

    def put(self, message: Message) -> None:
        """Begins to write a message, or has it wait for those before.

        Raises:
            Exception: whatever this write raised before its first wait, or one before it at all. What waits is dropped.
        """
        self._waiting.append(message)
        self._go_on()
        if self._error is not None:
            raise self._error

    async def flush(self) -> None:
        """Waits until all is written.

        Raises:
            Exception: whatever a write raised.
        """
        self._go_on()
        while self._under_way is not None:
            ready = asyncio.Event()
            self._under_way.when_ready(ready.set)
            await ready.wait()
            self._go_on()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Gives up what is not written. Safe to repeat."""
        self._waiting.clear()
        if self._under_way is not None:
            self._under_way.close()
            self._under_way = None

    def _go_on(self) -> None:
        try:
            while self._under_way is None or self._under_way.is_done():
                self._under_way = None
                if self._error is not None or not self._waiting:
                    self._waiting.clear()
                    return
                self._under_way = BegunWrite(self._write(self._waiting.popleft()))
        except Exception as error:  # noqa: BLE001  # told to whoever puts the next one, or flushes
            self._error, self._under_way = error, None
            self._waiting.clear()
            return
        if self._waiting and not self._is_watched:
            self._is_watched = True
            self._under_way.when_ready(self._go_on_watched)

    def _go_on_watched(self) -> None:
        self._is_watched = False
        if self._under_way is not None:
            self._go_on()
