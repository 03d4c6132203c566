"""Tool calls as Mistral models write them: `[TOOL_CALLS]` and a list of objects, or a name and its arguments."""

import re

from headrace.router.chat_output.call_machine import BARE_NAME, WHITE_SPACE, CallMachine, is_prefix_at
from headrace.router.chat_output.found_output import FoundCall
from headrace.router.chat_output.json_calls import CallShape, read_arguments, read_call

MARK, CALL_ID_MARK, ARGUMENTS_MARK = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_SHAPE = CallShape(argument_keys=("arguments", "parameters"))
_HEADER = re.compile(rf"\s*({BARE_NAME})\s*(?:\[CALL_ID\]\s*\w*\s*)?(?:\[ARGS\]\s*)?")


class MistralCalls(CallMachine):
    """Knows both notations: a list behind one mark, and a mark for each call with its name before the arguments.

    The identifiers that some of these models write are theirs to make up, so
    nobody could rely on them; the router gives its own.
    """

    __slots__ = ("_is_in_list",)

    markers = (MARK,)

    def __init__(self, call_limit: int | None = None) -> None:
        super().__init__(call_limit)
        self._is_in_list = False

    def _read_calls(self) -> bool:
        place, text = self._skip(WHITE_SPACE), self._held
        # A list begins with the character that the mark begins with, so one more has to come.
        if place == len(text) or is_prefix_at(text, place, MARK):
            return False
        if text.startswith(MARK, place):
            self._pass_mark(place + len(MARK))
            self._is_in_list, self._name = False, ""
        elif self._is_in_list:
            self._read_in_list(place)
        elif self._has_open_mark and text[place] == "[":
            self._place, self._is_in_list = place + 1, True
        elif self._has_open_mark:
            return self._read_header(place, _HEADER)
        else:
            self._end_calls(0)
        return True

    def _read_in_list(self, place: int) -> None:
        match self._held[place]:
            case "{":
                self._begin_object(place)
            case ",":
                self._place = place + 1
            case "]":
                self._end_calls(place + 1)
            case _:
                self._place = place
                self._give_up()

    def _read_object(self, text: str) -> FoundCall | None:
        if not self._name:
            return read_call(text, _SHAPE)
        arguments = read_arguments(text)
        return None if arguments is None else FoundCall(self._name, arguments)

    def _is_end(self, rest: str) -> bool:
        return self._is_in_list and rest == ","
