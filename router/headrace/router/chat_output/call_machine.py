"""The states that every notation of tool calls goes through, in a stream of text."""

import re
from abc import ABC, abstractmethod
from enum import Enum, auto

from headrace.router.chat_output.found_output import FoundCall, FoundText, first_marker, held_from
from headrace.router.chat_output.json_calls import ObjectScanner

WHITE_SPACE = " \t\n\r"
BARE_NAME = r"[\w.-]{1,64}"
"""Of a tool, where it stands without quotes."""
_HEADER_CHARACTERS = 256
"""A brace that comes later opens no arguments."""


def is_bare_name(text: str) -> bool:
    """Whether a text is found again as a name that stands without quotes."""
    return re.fullmatch(BARE_NAME, text) is not None


class State(Enum):
    """What the unread text is expected to be."""

    TEXT = auto()
    """Text, or the mark of a call."""
    CALLS = auto()
    """A call, or what stands between calls and at their end."""
    OBJECT = auto()
    """The rest of a JSON object."""
    OVER = auto()
    """Nothing: as many calls were found as are allowed."""


class CallMachine(ABC):
    """A `CallParser` but for the notation, which subclasses add.

    `_held` is the text that was neither released nor became a call; it begins
    where the last release or call ended. `_place` is how far it has been read.
    A call that turns out to be none is released to the letter, and reading goes
    on behind what was wrong, so no text is read twice.
    """

    __slots__ = (
        "_calls",
        "_calls_left",
        "_has_open_mark",
        "_held",
        "_is_after_call",
        "_name",
        "_object_start",
        "_place",
        "_released",
        "_scanner",
        "_state",
    )

    markers: tuple[str, ...]
    """Texts that begin calls."""

    def __init__(self, call_limit: int | None = None) -> None:
        """Takes the number of calls after which nothing more is read; None reads to the end."""
        self._calls_left = call_limit
        self._state = State.TEXT
        self._held = ""
        self._place = 0
        self._object_start = 0
        self._scanner = ObjectScanner()
        self._released: list[str] = []
        self._calls: list[FoundCall] = []
        self._has_open_mark = False
        """Whether the mark that was read last has brought no call."""
        self._is_after_call = False
        """Whether nothing but white space and marks came since the last call."""
        self._name = ""
        """Of the call whose arguments are being read; empty where its object says it."""

    def push(self, text: str) -> FoundText:
        """Returns what this text makes final."""
        self._held += text
        while self._read():
            pass
        return self._take()

    def flush(self) -> FoundText:
        """Returns what is left when no text follows."""
        rest = self._held.strip(WHITE_SPACE)
        is_structure = not rest or (self._state is State.CALLS and self._is_end(rest))
        if not (self._is_after_call and is_structure):
            self._released.append(self._held)
        self._held, self._place = "", 0
        return self._take()

    @abstractmethod
    def _read_calls(self) -> bool:
        """Reads on from `_place`, where a mark, a call or the end of calls may be. Returns whether it got further."""

    @abstractmethod
    def _read_object(self, text: str) -> FoundCall | None:
        """Returns the call that a JSON object is; None if it is none."""

    def _is_end(self, rest: str) -> bool:
        """Whether what follows the last call is the mark of its end, or the beginning of it."""
        return False

    def _read(self) -> bool:
        """Reads on as far as one state goes. Returns whether another may follow."""
        match self._state:
            case State.TEXT:
                return self._read_text()
            case State.CALLS:
                return self._read_calls()
            case State.OBJECT:
                return self._read_rest_of_object()
            case State.OVER:
                self._held = ""
                return False

    def _read_text(self) -> bool:
        found = first_marker(self._held, self.markers)
        end = held_from(self._held, self.markers) if found is None else found[0]
        # White space is withheld with what follows: before a call it is dropped.
        self._release(len(self._held[:end].rstrip(WHITE_SPACE)))
        if found is None:
            return False
        self._place = self._held.index(found[1])
        self._state = State.CALLS
        return True

    def _read_rest_of_object(self) -> bool:
        end = self._scanner.scan(self._held, self._place)
        self._place = len(self._held) if end is None else end
        if end is None:
            return False
        call = self._read_object(self._held[self._object_start : end])
        if call is None:
            self._give_up()
        else:
            self._accept(call)
        return True

    def _pass_mark(self, place: int) -> None:
        """Reads on behind the mark of a call that ends at `place`."""
        self._place = place
        self._has_open_mark = True

    def _read_header(self, place: int, header: re.Pattern[str]) -> bool:
        """Reads a name, a group of `header`, up to the brace of its arguments. Returns whether that much has come."""
        end = place + _HEADER_CHARACTERS
        brace = self._held.find("{", place, end)
        if brace < 0 and len(self._held) < end:
            return False
        found = None if brace < 0 else header.fullmatch(self._held, place, brace)
        if found is None:
            self._place = place
            self._give_up()
        else:
            self._name = next(filter(None, found.groups()))
            self._begin_object(brace)
        return True

    def _begin_object(self, place: int) -> None:
        """Reads a JSON object from its brace on."""
        self._object_start = self._place = place
        self._scanner = ObjectScanner()
        self._state = State.OBJECT

    def _accept(self, call: FoundCall) -> None:
        self._calls.append(call)
        self._is_after_call = True
        self._has_open_mark = False
        self._held, self._place = self._held[self._place :], 0
        self._state = State.CALLS
        if self._calls_left is not None:
            self._calls_left -= 1
            self._state = State.CALLS if self._calls_left else State.OVER

    def _end_calls(self, place: int) -> None:
        """Goes back to text behind the mark that ends calls. Marks without a call are text."""
        self._place = place
        if self._has_open_mark:
            self._give_up()
        else:
            self._held, self._place = self._held[place:], 0
            self._state = State.TEXT

    def _give_up(self) -> None:
        """Makes text of what was held, as far as it was read."""
        self._release(self._place)
        self._state = State.TEXT

    def _release(self, end: int) -> None:
        if end:
            self._released.append(self._held[:end])
            self._is_after_call = False
        self._held, self._place = self._held[end:], 0

    def _skip(self, characters: str) -> int:
        """Returns the first place from `_place` on that is none of these characters."""
        place = self._place
        while place < len(self._held) and self._held[place] in characters:
            place += 1
        return place

    def _take(self) -> FoundText:
        found = FoundText("".join(self._released), tuple(self._calls))
        self._released.clear()
        self._calls.clear()
        return found


def is_prefix_at(text: str, place: int, marker: str) -> bool:
    """Whether the text ends, from `place` on, in the beginning of a marker that is not complete."""
    return len(text) - place < len(marker) and marker.startswith(text[place:])
