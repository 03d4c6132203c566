"""Tool calls as Llama 3 models write them: `{"name": ..., "parameters": ...}` in place of an answer."""

from headrace.router.chat_output.call_machine import WHITE_SPACE, CallMachine, State, is_prefix_at
from headrace.router.chat_output.found_output import FoundCall
from headrace.router.chat_output.json_calls import CallShape, read_call

MARK = "<|python_tag|>"
_SHAPE = CallShape(argument_keys=("parameters", "arguments"), needs_arguments=True)
_SEPARATORS = ";,"


class Llama3Calls(CallMachine):
    """Calls begin with a mark, or without one where a completion begins. Several stand one after another.

    An answer may be a JSON object of its own, so only an object that names a
    tool of the request is a call.
    """

    __slots__ = ("_is_at_start", "_tool_names")

    markers = (MARK,)

    def __init__(self, tool_names: frozenset[str], call_limit: int | None = None) -> None:
        super().__init__(call_limit)
        self._tool_names = tool_names
        self._is_at_start = True

    def _read(self) -> bool:
        if not self._is_at_start:
            return super()._read()
        place = self._skip(WHITE_SPACE)
        if place == len(self._held):
            return False
        self._is_at_start = False
        if self._held[place] == "{":
            self._state, self._has_open_mark = State.CALLS, True
        return True

    def _read_calls(self) -> bool:
        place, text = self._skip(WHITE_SPACE + _SEPARATORS), self._held
        if place == len(text) or is_prefix_at(text, place, MARK):
            return False
        if text.startswith(MARK, place):
            self._pass_mark(place + len(MARK))
        elif text[place] == "{":
            self._begin_object(place)
        else:
            self._place = place
            self._give_up()
        return True

    def _read_object(self, text: str) -> FoundCall | None:
        call = read_call(text, _SHAPE)
        return call if call is not None and call.name in self._tool_names else None

    def _is_end(self, rest: str) -> bool:
        return not rest.strip(WHITE_SPACE + _SEPARATORS)
