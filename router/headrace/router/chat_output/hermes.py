"""Tool calls as Hermes and Qwen models write them: `<tool_call>{"name": ..., "arguments": ...}</tool_call>`."""

from headrace.router.chat_output.call_machine import WHITE_SPACE, CallMachine, is_prefix_at
from headrace.router.chat_output.found_output import FoundCall
from headrace.router.chat_output.json_calls import CallShape, read_call

BEGIN, END = "<tool_call>", "</tool_call>"
_SHAPE = CallShape(argument_keys=("arguments", "parameters"))


class HermesCalls(CallMachine):
    """Each call is an object between tags. A missing end tag is forgiven: models forget it before they end."""

    __slots__ = ()

    markers = (BEGIN,)

    def _read_calls(self) -> bool:
        place, text = self._skip(WHITE_SPACE), self._held
        if place == len(text) or is_prefix_at(text, place, END) or is_prefix_at(text, place, BEGIN):
            return False
        if text.startswith(END, place):
            self._end_calls(place + len(END))
        elif text.startswith(BEGIN, place):
            self._pass_mark(place + len(BEGIN))
        elif text[place] == "{":
            self._begin_object(place)
        else:
            self._place = place
            self._give_up()
        return True

    def _read_object(self, text: str) -> FoundCall | None:
        return read_call(text, _SHAPE)

    def _is_end(self, rest: str) -> bool:
        return END.startswith(rest)
