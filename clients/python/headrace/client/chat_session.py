"""A conversation in a terminal: what was said so far, how an answer is shown, and the commands."""

import asyncio
from collections.abc import Sequence
from typing import TextIO

from headrace.client.aio import AsyncClient
from headrace.client.aio_stream import AsyncGenerationStream
from headrace.client.chat import Message
from headrace.client.options import ChatOptions
from headrace.client.progress import StreamProgress

_HELP = """\
/reset  forgets the conversation
/stats  shows the speed of the last answer
/help   shows this
Ctrl-C cancels an answer and keeps what came; Ctrl-D ends."""


class ChatSession:
    """One conversation. It goes on after a failed or cancelled answer."""

    def __init__(self, client: AsyncClient, options: ChatOptions, *, system: str = "", screen: TextIO) -> None:
        self._client = client
        self._options = options
        self._opening = [Message("system", system)] if system else []
        self._turns: list[Message] = []
        self._screen = screen
        self._last_stats = "no answer yet"

    async def take(self, line: str) -> None:
        """Answers a line, or does what it commands.

        When it is cancelled, the part of the answer that was shown is remembered.

        Raises:
            HeadraceError: the request failed; the conversation is as it was before.
        """
        if line.startswith("/"):
            show(self._screen, self._command(line) + "\n")
            return
        question = Message("user", line)
        async with self._client.chat_stream((*self._opening, *self._turns, question), **self._options) as stream:
            try:
                await show_answer(stream, self._screen)
            except asyncio.CancelledError:
                show(self._screen, "\n(cancelled)\n")
                self._remember(question, stream)
                raise
        self._remember(question, stream)

    def _remember(self, question: Message, stream: AsyncGenerationStream) -> None:
        # The model goes on from what the person saw; of a question without an answer nothing stays.
        if stream.text:
            self._turns += [question, Message("assistant", stream.text)]
        self._last_stats = stats_line(stream) if stream.has_finished else "the last answer was cancelled"

    def _command(self, line: str) -> str:
        match line:
            case "/reset":
                self._turns.clear()
                return "(forgotten)"
            case "/stats":
                return self._last_stats
            case "/help":
                return _HELP
            case _:
                return f"there is no command {line}\n{_HELP}"


async def one_shot(client: AsyncClient, messages: Sequence[Message], options: ChatOptions, screen: TextIO) -> str:
    """Shows one answer as it comes and returns the line about its speed.

    Raises:
        HeadraceError: the request failed.
    """
    async with client.chat_stream(messages, **options) as stream:
        await show_answer(stream, screen)
    return stats_line(stream)


async def show_answer(stream: AsyncGenerationStream, screen: TextIO) -> None:
    """Writes an answer as it comes, its reasoning in parentheses, and ends its line.

    Raises:
        HeadraceError: the request failed.
    """
    is_reasoning = False
    async for delta in stream:
        if delta.reasoning:
            show(screen, delta.reasoning if is_reasoning else f"({delta.reasoning}")
            is_reasoning = True
        if delta.text:
            show(screen, f")\n\n{delta.text}" if is_reasoning else delta.text)
            is_reasoning = False
    show(screen, ")\n" if is_reasoning else "\n")


def show(screen: TextIO, text: str) -> None:
    """Writes a text at once: whoever watches sees each token when it was generated."""
    screen.write(text)
    screen.flush()


def stats_line(stream: StreamProgress) -> str:
    """Returns the speed of a finished answer in one line."""
    usage = stream.finished.usage
    parts: list[str] = []
    if stream.time_to_first_token_s is not None:
        parts.append(f"time to first token {stream.time_to_first_token_s:.3f} s")
    if stream.tokens_per_s is not None:
        parts.append(f"{stream.tokens_per_s:.1f} tokens/s")
    plural = "" if usage.generated_token_count == 1 else "s"
    parts.append(f"{usage.generated_token_count} token{plural}")
    parts.append(f"{usage.cached_token_count} of {usage.prompt_token_count} prompt tokens cached")
    return " · ".join(parts)
