"""Takes the reasoning off the beginning of a completion, where a model marks it."""

from enum import Enum, auto

from headrace.router.chat_output.call_machine import WHITE_SPACE
from headrace.router.chat_output.found_output import held_from


class _State(Enum):
    START = auto()
    REASONING = auto()
    ANSWER = auto()


class ReasoningSplitter:
    """Splits a stream of text, wherever it is divided, into reasoning and an answer.

    Reasoning is looked for where the completion begins and nowhere else: an
    answer may well be about the tags. The white space around it is dropped. A
    completion that ends before its reasoning does is all reasoning.
    """

    __slots__ = ("_begin", "_end", "_held", "_is_trimming", "_state")

    def __init__(self, begin: str, end: str, *, starts_inside: bool) -> None:
        """With `starts_inside` the prompt has opened the reasoning already, as some templates do."""
        self._begin = begin
        self._end = end
        self._held = ""
        self._state = _State.REASONING if starts_inside else _State.START
        self._is_trimming = True
        """Whether white space at the beginning of the unread text is dropped."""

    def push(self, text: str) -> tuple[str, str]:
        """Returns what this text makes final, of the reasoning and of the answer."""
        self._held += text
        if self._state is _State.START and not self._read_start():
            return "", ""
        reasoning = self._read_reasoning() if self._state is _State.REASONING else ""
        return reasoning, self._read_answer() if self._state is _State.ANSWER else ""

    def flush(self) -> tuple[str, str]:
        """Returns what is left when no text follows. Call once, last."""
        rest, self._held = self._held, ""
        return (rest, "") if self._state is _State.REASONING else ("", rest)

    def _read_start(self) -> bool:
        """Decides whether the completion begins with reasoning. Returns whether it could."""
        text = self._held.lstrip(WHITE_SPACE)
        if text.startswith(self._begin):
            self._held = text[len(self._begin) :]
            self._state = _State.REASONING
            return True
        if self._begin.startswith(text):
            return False
        self._state = _State.ANSWER
        self._is_trimming = False
        return True

    def _read_reasoning(self) -> str:
        text = self._trimmed()
        end = text.find(self._end)
        if end >= 0:
            self._held = text[end + len(self._end) :]
            self._state = _State.ANSWER
            self._is_trimming = True
            return text[:end].rstrip(WHITE_SPACE)
        # White space is withheld with what follows: before the end it is dropped.
        final_count = len(text[: held_from(text, (self._end,))].rstrip(WHITE_SPACE))
        self._held = text[final_count:]
        return text[:final_count]

    def _read_answer(self) -> str:
        text = self._trimmed()
        self._held = ""
        return text

    def _trimmed(self) -> str:
        text = self._held.lstrip(WHITE_SPACE) if self._is_trimming else self._held
        self._is_trimming = self._is_trimming and not text
        return text
