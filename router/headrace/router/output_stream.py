"""The mailbox between the step loop, which never waits, and one request's reader, who may be slow."""

import asyncio
from collections.abc import AsyncIterator

from headrace.contract.errors import HeadraceError
from headrace.contract.generation import (
    GenerationDelta,
    GenerationEvent,
    GenerationFinished,
    GenerationStarted,
    TokenLogprob,
)


class OutputStream:
    """Holds what one reader has not taken yet, coalesced into at most three events.

    Deltas that pile up become one, so what is held never outgrows the
    completion itself. Writers never wait. One reader; one event loop.
    """

    __slots__ = ("_end", "_logprobs", "_started", "_texts", "_token_ids", "_waiter")

    def __init__(self) -> None:
        self._started: GenerationStarted | None = None
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._end: GenerationFinished | HeadraceError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_closed(self) -> bool:
        """Whether the last event or an error was put in; later writes are dropped."""
        return self._end is not None

    def put_started(self, event: GenerationStarted) -> None:
        """Announces the start; once, before everything else."""
        self._started = event
        self._wake()

    def put_tokens(self, text: str, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...] = ()) -> None:
        """Adds text and tokens to the delta that the reader will get next."""
        if self._end is not None:
            return
        if text:
            self._texts.append(text)
        self._token_ids.extend(token_ids)
        if logprobs:
            self._logprobs.extend(logprobs)
        self._wake()

    def finish(self, event: GenerationFinished) -> None:
        """Ends the stream; the first end wins."""
        self._close(event)

    def fail(self, error: HeadraceError) -> None:
        """Ends the stream with an error, which the reader sees after what was put before."""
        self._close(error)

    async def events(self) -> AsyncIterator[GenerationEvent]:
        """Yields the events in order, `finished` last.

        Raises:
            HeadraceError: the error the stream was ended with.
        """
        while True:
            if self._started is not None:
                started, self._started = self._started, None
                yield started
            elif self._token_ids or self._texts:
                yield self._take_delta()
            elif isinstance(self._end, GenerationFinished):
                yield self._end
                return
            elif self._end is not None:
                raise self._end
            else:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter

    def _take_delta(self) -> GenerationDelta:
        texts, self._texts = self._texts, []
        token_ids, self._token_ids = self._token_ids, []
        logprobs, self._logprobs = self._logprobs, []
        text = texts[0] if len(texts) == 1 else "".join(texts)
        return GenerationDelta(text=text, token_ids=tuple(token_ids), logprobs=tuple(logprobs))

    def _close(self, end: GenerationFinished | HeadraceError) -> None:
        if self._end is None:
            self._end = end
            self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
