"""Tool calls as DeepSeek models write them: a name and its arguments between marks, one call after the other."""

import re

from headrace.router.chat_output.call_machine import BARE_NAME, WHITE_SPACE, CallMachine, is_prefix_at
from headrace.router.chat_output.found_output import FoundCall
from headrace.router.chat_output.json_calls import read_arguments

BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, SEPARATOR, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
FENCE = "```json"
_MARKS = (BEGIN, CALL_BEGIN, CALL_END, END)
_FENCE_CHARACTERS = "`"
_HEADER = re.compile(
    rf"\s*(?:function\s*{SEPARATOR}\s*({BARE_NAME})\s*|({BARE_NAME})\s*{SEPARATOR}\s*)(?:```(?:json)?\s*)?"
)


class DeepSeekCalls(CallMachine):
    """Knows both notations: R1 and V3 put the arguments into a fence behind the name, V3.1 puts them as they are.

    Marks at the end are forgiven when they are missing, as is the one around all calls.
    """

    __slots__ = ("_is_in_call",)

    markers = (BEGIN, CALL_BEGIN)

    def __init__(self, call_limit: int | None = None) -> None:
        super().__init__(call_limit)
        self._is_in_call = False
        """Whether the mark that was read last is followed by a name."""

    def _read_calls(self) -> bool:
        # The fence behind arguments is no text.
        place = self._skip(WHITE_SPACE + _FENCE_CHARACTERS if self._is_after_call else WHITE_SPACE)
        text = self._held
        if place == len(text) or any(is_prefix_at(text, place, mark) for mark in _MARKS):
            return False
        mark = next((mark for mark in _MARKS if text.startswith(mark, place)), None)
        if mark in (BEGIN, CALL_BEGIN):
            self._pass_mark(place + len(mark))
            self._is_in_call = mark == CALL_BEGIN
        elif mark == CALL_END and not self._has_open_mark:
            self._held, self._place = text[place + len(mark) :], 0
        elif mark == END:
            self._end_calls(place + len(mark))
        elif mark is None and self._is_in_call and self._has_open_mark:
            return self._read_header(place, _HEADER)
        else:
            self._place = place
            self._give_up()
        return True

    def _read_object(self, text: str) -> FoundCall | None:
        arguments = read_arguments(text)
        return None if arguments is None else FoundCall(self._name, arguments)

    def _is_end(self, rest: str) -> bool:
        rest = rest.lstrip(WHITE_SPACE + _FENCE_CHARACTERS)
        return any(mark.startswith(rest) for mark in (CALL_END, END))
