"""Finds where a JSON object in a stream of text ends, and reads it as a tool call."""

import json
from dataclasses import dataclass
from typing import TypeGuard

from headrace.router.chat_output.found_output import FoundCall

_LENIENT = json.JSONDecoder(strict=False)
_WHITE_SPACE = " \t\n\r"


class ObjectScanner:
    """Follows a JSON object from its opening brace to the one that closes it, over as many pieces as it comes in."""

    __slots__ = ("_depth", "_is_escaped", "_is_in_string")

    def __init__(self) -> None:
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False

    def scan(self, text: str, start: int) -> int | None:
        """Returns the place behind the closing brace; None if it is not in the text from `start` on."""
        for place in range(start, len(text)):
            character = text[place]
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_in_string:
                self._is_escaped = character == "\\"
                self._is_in_string = character != '"'
            elif character == '"':
                self._is_in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return place + 1
        return None


@dataclass(frozen=True, slots=True)
class CallShape:
    """How a format writes a call as a JSON object."""

    argument_keys: tuple[str, ...]
    """Names of the member that holds the arguments, the usual one first."""
    needs_arguments: bool = False
    """Whether an object without that member is no call."""


def read_call(text: str, shape: CallShape) -> FoundCall | None:
    """Returns the call that a JSON object describes; None if it describes none."""
    members = _members(text)
    if members is None:
        return None
    name = _value(members.get("name", ""))
    if not isinstance(name, str) or not name:
        return None
    written = next((members[key] for key in shape.argument_keys if key in members), None)
    if written is None:
        return None if shape.needs_arguments else FoundCall(name, "{}")
    arguments = read_arguments(written)
    return None if arguments is None else FoundCall(name, arguments)


def read_arguments(text: str) -> str | None:
    """Returns arguments as JSON that every parser takes; None if they are no object.

    It is the text as the model wrote it, so that no number changes, but for
    strings with line breaks in them, which models write and JSON forbids.
    """
    value = _value(text)
    if isinstance(value, str):
        # Some models write the object as a string, as OpenAI's API carries it.
        text, value = value, _value(value)
    if value is None and text.strip() == "null":
        return "{}"
    if not isinstance(value, dict):
        return None
    if _value(text, is_strict=True) is not None:
        return text.strip(_WHITE_SPACE)
    return json.dumps(value, ensure_ascii=False)


def _members(text: str) -> dict[str, str] | None:
    """Returns the text of each member of a JSON object; None if it is no JSON object."""
    if not _is_object(_value(text)):
        return None
    members: dict[str, str] = {}
    place = _skip(text, _skip(text, 0) + 1)
    while text[place] != "}":
        key, place = _LENIENT.raw_decode(text, place)
        start = _skip(text, _skip(text, place) + 1)
        _, end = _LENIENT.raw_decode(text, start)
        members[key] = text[start:end]
        place = _skip(text, end)
        if text[place] == ",":
            place = _skip(text, place + 1)
    return members


def _is_object(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)


def _value(text: str, *, is_strict: bool = False) -> object:
    """Returns what a JSON text says; None if it is none, or not one that others would take."""
    try:
        value: object = json.loads(text, strict=is_strict, parse_constant=_refuse)
        # Half of a surrogate pair can come in as an escape. It has no bytes, so no message can carry it.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None
    return value


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON")


def _skip(text: str, place: int) -> int:
    """Returns the first place from `place` on that is no white space."""
    while place < len(text) and text[place] in _WHITE_SPACE:
        place += 1
    return place
