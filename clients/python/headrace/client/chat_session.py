"""A conversation in a terminal: what was said so far, how an answer is shown, and the commands."""

from collections.abc import Callable, Sequence
from typing import TextIO

from headrace.client.chat import Message
from headrace.client.operations import Model
from headrace.client.options import ChatOptions
from headrace.client.sync import Client
from headrace.client.sync_stream import GenerationStream
from headrace.contract.errors import HeadraceError

_HELP = """\
/reset  forgets the conversation
/stats  shows the speed of the last answer
/help   shows this
Ctrl-C cancels an answer and keeps what came; Ctrl-D ends."""


class ChatSession:
    """One conversation. It goes on after a failed or cancelled answer."""

    def __init__(self, client: Client, options: ChatOptions, *, system: str = "", screen: TextIO) -> None:
        self._client = client
        self._options = options
        self._opening = [Message("system", system)] if system else []
        self._turns: list[Message] = []
        self._screen = screen
        self._last_stats = "no answer yet"

    @property
    def messages(self) -> tuple[Message, ...]:
        """What the model is told next, oldest first."""
        return (*self._opening, *self._turns)

    def run(self, read_line: Callable[[str], str], explain: Callable[[HeadraceError], str]) -> None:
        """Answers lines until their end.

        `read_line` works as `input` does: it raises EOFError at the end, and KeyboardInterrupt for Ctrl-C.
        """
        while True:
            try:
                line = read_line("> ").strip()
            except EOFError:
                self._show("\n")
                return
            except KeyboardInterrupt:
                self._show("\n(Ctrl-D ends)\n")
                continue
            if line.startswith("/"):
                self._show(self._command(line) + "\n")
            elif line:
                try:
                    self.answer(line)
                except HeadraceError as error:
                    self._show(f"\n{explain(error)}\n")

    def answer(self, text: str) -> None:
        """Asks, and shows the answer as it comes. Ctrl-C cancels the answer; the part that came is remembered.

        Raises:
            HeadraceError: the request failed; the conversation is as it was before.
        """
        question = Message("user", text)
        with self._client.chat_stream((*self.messages, question), **self._options) as stream:
            try:
                show_answer(stream, self._screen)
            except KeyboardInterrupt:
                stream.cancel()
                self._show("\n(cancelled)\n")
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

    def _show(self, text: str) -> None:
        self._screen.write(text)
        self._screen.flush()


def show_answer(stream: GenerationStream, screen: TextIO) -> None:
    """Writes an answer as it comes, and ends its line.

    Raises:
        HeadraceError: the request failed.
    """
    for text in stream.texts():
        screen.write(text)
        # Whoever watches sees each token when it was generated.
        screen.flush()
    screen.write("\n")
    screen.flush()


def stats_line(stream: GenerationStream) -> str:
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


def greeting(model: Model, target: str) -> str:
    """Returns the line that opens a conversation."""
    return f"{model.name} at {target}. /help lists the commands, Ctrl-D ends."


def one_shot(client: Client, messages: Sequence[Message], options: ChatOptions, screen: TextIO) -> str:
    """Shows one answer as it comes and returns the line about its speed.

    Raises:
        HeadraceError: the request failed.
    """
    with client.chat_stream(messages, **options) as stream:
        show_answer(stream, screen)
    return stats_line(stream)
