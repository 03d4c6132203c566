"""Finds out how a model writes tool calls, by letting its chat template write one."""

import json

from headrace.contract.chat_output import ToolFormat
from headrace.contract.errors import FeatureUnsupported, InvalidRequest
from headrace.contract.generation import ChatMessage, ChatPrompt, Tool, ToolCall
from headrace.router.chat_output.formats import call_parser, detect_tool_format
from headrace.router.chat_template import ChatTemplate

_QUESTION = "probe the water"
_TOOL = Tool(name="headrace_probe", description="", parameters={"type": "object", "properties": {}})
_ARGUMENTS = {"depth": 3, "at": "a } weir"}


def probe_tool_format(source: str, template: ChatTemplate) -> ToolFormat | None:
    """Returns how a model writes calls; None if its template takes no tools, or writes calls in another notation.

    The marks in the template tell which notation it may be. They are not enough:
    several notations share a mark and differ in what stands between.
    """
    likely = detect_tool_format(source) if template.takes_tools else None
    if likely is None:
        return None
    call = ToolCall(id="probe0000", name=_TOOL.name, arguments_json=json.dumps(_ARGUMENTS))
    turns = (
        ChatMessage(role="user", content=_QUESTION),
        ChatMessage(role="assistant", content="", tool_calls=(call,)),
    )
    try:
        text = template.render(ChatPrompt(messages=turns, tools=(_TOOL,)))
    except (InvalidRequest, FeatureUnsupported):
        # A template for conversations of another shape; its marks have to do.
        return likely
    _, _, turn = text.rpartition(_QUESTION)
    # Where nothing marks a call, it has to be all that is said.
    return likely if _finds_call(turn, likely) or _finds_call(turn[turn.find("{") :], likely) else None


def _finds_call(text: str, tool_format: ToolFormat) -> bool:
    parser = call_parser(tool_format, frozenset({_TOOL.name}), None)
    found = [*parser.push(text).calls, *parser.flush().calls]
    return [(call.name, json.loads(call.arguments_json)) for call in found] == [(_TOOL.name, _ARGUMENTS)]
