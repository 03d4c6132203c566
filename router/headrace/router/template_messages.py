"""A conversation in the form that a chat template expects, and what that form is, found out by trying."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from headrace.contract.errors import InvalidRequest
from headrace.contract.generation import ChatMessage, JsonValue, Tool, ToolCall

_EXACT_INTEGER_END = 2**53
"""From here on a double stands for more than one whole number."""
_SHOWN_CHARACTERS = 200
_TOOL = Tool(name="headrace_probe", description="Probes.", parameters={"type": "object", "properties": {}})
_ARGUMENTS = {"depth": 37, "at": "weir"}
_QUESTION, _RESULT = "probe the water", "cold and clear"
_CALL = ToolCall(id="probe0000", name=_TOOL.name, arguments_json=json.dumps(_ARGUMENTS))
_CALLING_TURNS = (
    ChatMessage(role="user", content=_QUESTION),
    ChatMessage(role="assistant", content="", tool_calls=(_CALL,)),
    ChatMessage(role="tool", content=_RESULT, tool_call_id=_CALL.id, name=_TOOL.name),
)

Variables = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageForm:
    """In what templates differ, none of which they say."""

    empty_content: str | None = ""
    """The content of a message that has calls alone. Some look at it to tell such a message from others."""
    has_text_arguments: bool = False
    """Whether the arguments of a call are the text of a JSON object, which the template writes as it is."""
    no_tools: tuple[()] | None = None
    """What stands for no tools: some go through them without asking whether there are any."""


def find_message_form(render: Callable[[Variables], str], *, takes_tools: bool) -> MessageForm:
    """Finds out by short conversations what a template expects; the usual form where nothing else is better.

    Args:
        render: Renders some variables.
        takes_tools: Whether the template has a place for tools.

    Raises:
        InvalidRequest: never; what `render` raises of it counts as no text.
    """

    def text(form: MessageForm, turns: tuple[ChatMessage, ...], tools: tuple[Tool, ...]) -> str | None:
        try:
            return render(template_variables(turns, tools, form))
        except InvalidRequest:
            return None

    no_tools = None if text(MessageForm(), _CALLING_TURNS[:1], ()) is not None else ()
    tools = (_TOOL,) if takes_tools else ()
    for has_text_arguments in (False, True):
        for empty_content in (None, ""):
            form = MessageForm(empty_content=empty_content, has_text_arguments=has_text_arguments, no_tools=no_tools)
            if _has_call(text(form, _CALLING_TURNS, tools)):
                return form
    return MessageForm(no_tools=no_tools)


def template_variables(messages: tuple[ChatMessage, ...], tools: tuple[Tool, ...], form: MessageForm) -> Variables:
    """Returns the variables that hold a conversation.

    Raises:
        InvalidRequest: the arguments of a call are no JSON object.
    """
    return {
        "messages": [_message(message, index, form) for index, message in enumerate(messages)],
        "tools": [_tool(tool) for tool in tools] or form.no_tools,
        "add_generation_prompt": True,
    }


def whole_numbers(value: JsonValue) -> JsonValue:
    """Returns the value with whole numbers as integers.

    google.protobuf.Struct only knows doubles, and a model that learned `"minimum": 0` has not learned `"minimum": 0.0`.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT_INTEGER_END:
        return int(value)
    if isinstance(value, list):
        return [whole_numbers(item) for item in value]
    if isinstance(value, dict):
        return {name: whole_numbers(item) for name, item in value.items()}
    return value


def shown(error: Exception) -> str:
    """Returns an error's text in one line that is not too long."""
    text = " ".join(str(error).split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def _has_call(text: str | None) -> bool:
    """Whether a rendered conversation tells the call as a model would have written it."""
    if text is None:
        return False
    after = text.rpartition(_QUESTION)[2]
    is_told = all(word in after for word in (_TOOL.name, "depth", "37", "at", "weir", _RESULT))
    # What Python writes of an object or of nothing is no text of any model; nor is JSON within JSON.
    return is_told and not any(mark in after for mark in (str(_ARGUMENTS), "None", '\\"depth\\"'))


def _message(message: ChatMessage, index: int, form: MessageForm) -> dict[str, object]:
    """Returns a message as templates expect it: the form of OpenAI's API, arguments mostly as objects."""
    rendered: dict[str, object] = {"role": message.role, "content": message.content}
    if message.name:
        rendered["name"] = message.name
    if message.tool_call_id:
        rendered["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        path = f"chat.messages[{index}].tool_calls"
        calls = [_tool_call(call, f"{path}[{at}]", form) for at, call in enumerate(message.tool_calls)]
        rendered |= {"tool_calls": calls, "content": message.content or form.empty_content}
    if message.reasoning:
        # Two names are in use among templates.
        rendered["reasoning_content"] = rendered["thinking"] = message.reasoning
    return rendered


def _tool_call(call: ToolCall, path: str, form: MessageForm) -> dict[str, object]:
    text = call.arguments_json.strip() or "{}"
    try:
        arguments: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest.of(f"{path}.arguments_json", f"must be JSON: {shown(error)}") from error
    if not isinstance(arguments, dict):
        raise InvalidRequest.of(f"{path}.arguments_json", "must be a JSON object")
    written = text if form.has_text_arguments else arguments
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": written}}


def _tool(tool: Tool) -> dict[str, object]:
    parameters = {name: whole_numbers(value) for name, value in tool.parameters.items()}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}
