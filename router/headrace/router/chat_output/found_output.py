"""What is found in the text of a completion, piece by piece."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class FoundCall:
    """A tool call that a model wrote."""

    name: str
    arguments_json: str
    """The text of a JSON object."""


@dataclass(frozen=True, slots=True)
class FoundText:
    """A piece of a completion, told apart."""

    text: str = ""
    """What is no call."""
    calls: tuple[FoundCall, ...] = ()


class CallParser(Protocol):
    """Finds tool calls in a stream of text, wherever the stream is divided.

    What looks like a call and is none stays text, to the letter. Text that may
    become a call is withheld. White space before a call is dropped, and so is
    white space between the last call and the end.
    """

    def push(self, text: str) -> FoundText:
        """Returns what this text makes final."""
        ...

    def flush(self) -> FoundText:
        """Returns what is left when no text follows. Call once, last."""
        ...


def held_from(text: str, markers: tuple[str, ...], start: int = 0) -> int:
    """Returns the first place, from `start` on, where the rest of the text is the beginning of a marker."""
    longest = max(len(marker) for marker in markers)
    for place in range(max(start, len(text) - longest + 1), len(text)):
        if any(marker.startswith(text[place:]) for marker in markers):
            return place
    return len(text)


def first_marker(text: str, markers: tuple[str, ...]) -> tuple[int, str] | None:
    """Returns where the first marker begins in the text, and which it is; the longest of those that begin there."""
    found = [(place, -len(marker), marker) for marker in markers if (place := text.find(marker)) >= 0]
    if not found:
        return None
    place, _, marker = min(found)
    return place, marker
