"""The mailbox between the step loop, which never waits, and one request's reader, who may be slow."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from headrace.contract.errors import HeadraceError
from headrace.contract.generation import (
    GenerationDelta,
    GenerationEvent,
    GenerationFinished,
    GenerationStarted,
    TokenLogprob,
    ToolCallDelta,
)


class OutputStream:
    """Holds what one reader has not taken yet, coalesced into two events and one for each completion.

    Deltas of a completion that pile up become one, so what is held never
    outgrows the completions themselves. Writers never wait. One reader; one
    event loop.
    """

    __slots__ = ("_end", "_is_held", "_notify", "_pending", "_started", "is_started")

    def __init__(self, *, is_held: bool = False) -> None:
        """Starts empty.

        Args:
            is_held: Whether deltas stay here until `release` says which of the completions are wanted.
        """
        self.is_started = False
        """Whether the start was announced; the reader gets nothing before it."""
        self._started: GenerationStarted | None = None
        self._pending: dict[int, GenerationDelta | _Pile] = {}
        """By index of the completion; the one that has waited longest is first. A quick reader never meets a pile."""
        self._is_held = is_held
        self._end: GenerationFinished | HeadraceError | None = None
        self._notify: Callable[[], None] | None = None

    @property
    def is_closed(self) -> bool:
        """Whether the last event or an error was put in; later writes are dropped."""
        return self._end is not None

    @property
    def is_held(self) -> bool:
        """Whether the reader gets no tokens yet."""
        return self._is_held

    def put_started(self, event: GenerationStarted) -> None:
        """Announces the start; once, before everything else."""
        self.is_started = True
        self._started = event
        self._wake()

    def put_tokens(
        self, text: str, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...] = (), *, index: int = 0
    ) -> None:
        """Adds text and tokens to the delta of a completion that the reader will get next."""
        if self._end is None:
            self._put(GenerationDelta(text, token_ids, logprobs, index))

    def put_pieces(self, reasoning: str, tool_calls: tuple[ToolCallDelta, ...], *, index: int) -> None:
        """Adds reasoning and tool calls to the same delta."""
        if self._end is None and (reasoning or tool_calls):
            self._put(GenerationDelta(text="", token_ids=(), index=index, reasoning=reasoning, tool_calls=tool_calls))

    def release(self, indices: Sequence[int]) -> None:
        """Lets the reader have what was held of these completions, which become 0, 1, ...; forgets the others."""
        held, self._pending = self._pending, {}
        for index, held_index in enumerate(indices):
            if held_index in held:
                self._pending[index] = replace(_whole(held[held_index]), index=index)
        self._is_held = False
        self._wake()

    def finish(self, event: GenerationFinished) -> None:
        """Ends the stream; the first end wins."""
        self._close(event)

    def fail(self, error: HeadraceError) -> None:
        """Ends the stream with an error, which the reader sees after what was put before."""
        self._close(error)

    @property
    def has_event(self) -> bool:
        """Whether `take` would return an event or raise."""
        # As in `take`, spelled out: both are asked for every token.
        has_delta = bool(self._pending) and self.is_started and not self._is_held
        return has_delta or self._started is not None or self._end is not None

    def take(self) -> GenerationEvent | None:
        """Returns the next event, `finished` last; None if there is none yet.

        Raises:
            HeadraceError: the error the stream was ended with.
        """
        if self._started is not None:
            started, self._started = self._started, None
            return started
        pending = self._pending
        if pending and self.is_started and not self._is_held:
            first = pending.pop(next(iter(pending)))
            return first if isinstance(first, GenerationDelta) else first.delta()
        if self._end is None or isinstance(self._end, GenerationFinished):
            return self._end
        raise self._end

    def when_filled(self, notify: Callable[[], None]) -> None:
        """Calls `notify` once, when something is put in next. It must not raise, and should leave work for later.

        A later call replaces an earlier one that has not come about.
        """
        self._notify = notify

    async def events(self) -> AsyncIterator[GenerationEvent]:
        """Yields the events in order, `finished` last.

        Raises:
            HeadraceError: the error the stream was ended with.
        """
        filled = asyncio.Event()
        while True:
            event = self.take()
            if event is None:
                filled.clear()
                self.when_filled(filled.set)
                await filled.wait()
                continue
            yield event
            if isinstance(event, GenerationFinished):
                return

    def _put(self, delta: GenerationDelta) -> None:
        pending = self._pending.setdefault(delta.index, delta)
        if pending is not delta:
            if isinstance(pending, GenerationDelta):
                pending = self._pending[delta.index] = _Pile(pending)
            pending.add(delta)
        self._wake()

    def _close(self, end: GenerationFinished | HeadraceError) -> None:
        if self._end is None:
            self._end = end
            self._wake()

    def _wake(self) -> None:
        notify, self._notify = self._notify, None
        if notify is not None:
            notify()


def _whole(pending: "GenerationDelta | _Pile") -> GenerationDelta:
    return pending if isinstance(pending, GenerationDelta) else pending.delta()


class _Pile:
    """Deltas of one completion that the reader has not taken, on their way to be one."""

    __slots__ = ("_index", "_logprobs", "_reasonings", "_texts", "_token_ids", "_tool_calls")

    def __init__(self, first: GenerationDelta) -> None:
        self._index = first.index
        self._texts = [first.text]
        self._token_ids = list(first.token_ids)
        self._logprobs = list(first.logprobs)
        self._reasonings = [first.reasoning]
        self._tool_calls = list(first.tool_calls)

    def add(self, delta: GenerationDelta) -> None:
        if delta.text:
            self._texts.append(delta.text)
        if delta.reasoning:
            self._reasonings.append(delta.reasoning)
        self._token_ids.extend(delta.token_ids)
        self._logprobs.extend(delta.logprobs)
        self._tool_calls.extend(delta.tool_calls)

    def delta(self) -> GenerationDelta:
        return GenerationDelta(
            text="".join(self._texts),
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs),
            index=self._index,
            reasoning="".join(self._reasonings),
            tool_calls=tuple(self._tool_calls),
        )
