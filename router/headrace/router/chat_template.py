"""Renders a conversation to a prompt with the model's own chat template."""

import json
from collections.abc import Callable, Mapping
from datetime import datetime

from jinja2 import TemplateError, TemplateSyntaxError

from headrace.contract.errors import FeatureUnsupported, InvalidRequest, StartupError
from headrace.contract.generation import ChatMessage, ChatPrompt, JsonValue, Tool, ToolCall, ToolChoiceMode
from headrace.router.template_environment import TemplateEnvironment, TemplateTooExpensive, render

RESERVED_ARGUMENTS = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})
"""Variables of a template that the prompt itself sets."""

_STEP_LIMIT = 200_000
_OUTPUT_LIMIT_CHARACTERS = 16 * 2**20
_SHOWN_CHARACTERS = 200
_EXACT_INTEGER_END = 2**53
"""From here on a double stands for more than one whole number."""

# The space tells whether the template trimmed the message: then the mark has lost it.
_CONTINUATION_MARK = "\ue000continues here\ue001 "


class ChatTemplate:
    """A model's chat template. Immutable, so that threads may share it."""

    __slots__ = ("_compiled", "_special_tokens")

    def __init__(
        self,
        template: str,
        special_tokens: Mapping[str, str],
        *,
        now: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    ) -> None:
        """Compiles a template.

        Args:
            template: Jinja, as `tokenizer_config.json` holds it.
            special_tokens: variables such as `bos_token`.
            now: local time, for templates that write the date.

        Raises:
            StartupError: the template is not valid.
        """
        try:
            self._compiled = TemplateEnvironment(now).compile_chat_template(template)
        except TemplateSyntaxError as error:
            raise StartupError(f"the model's chat template is not valid in line {error.lineno}: {error}") from error
        self._special_tokens = dict(special_tokens)

    @property
    def takes_tools(self) -> bool:
        """Whether the template has a place for tools."""
        return "tools" in self._compiled.variables

    def render(self, chat: ChatPrompt) -> str:
        """Returns the text of a conversation, ready for its completion. Can take a while: use a thread.

        Raises:
            InvalidRequest: the template refuses the conversation, or cannot render it.
            FeatureUnsupported: there are tools, but the template has no place for them.
        """
        # "none" means that no tool is to be called, so the model need not know of them.
        tools = () if chat.tool_choice is ToolChoiceMode.NONE else chat.tools
        if tools and not self.takes_tools:
            raise FeatureUnsupported("chat.tools", "the model's chat template has no place for tools")
        messages = [_message(message, index) for index, message in enumerate(chat.messages)]
        if chat.continue_final_message:
            messages[-1]["content"] = chat.messages[-1].content + _CONTINUATION_MARK
        text = self._render(
            {
                "documents": None,
                **self._special_tokens,
                **{name: _whole_numbers(value) for name, value in chat.template_arguments.items()},
                "messages": messages,
                "tools": [_tool(tool) for tool in tools] or None,
                "add_generation_prompt": not chat.continue_final_message,
            }
        )
        if chat.continue_final_message:
            text = _cut_at_mark(text, chat.messages[-1].content)
        return text

    def _render(self, variables: dict[str, object]) -> str:
        try:
            text = render(
                self._compiled,
                variables,
                step_limit=_STEP_LIMIT,
                output_limit_characters=_OUTPUT_LIMIT_CHARACTERS,
            )
            # Half of a surrogate pair can come in as an escape in JSON. It has no bytes, hence no tokens.
            text.encode()
        except TemplateTooExpensive as error:
            raise InvalidRequest.of("chat", f"the model's chat template was stopped: {error}") from error
        except TemplateError as error:
            raise InvalidRequest.of("chat", f"refused by the model's chat template: {_shown(error)}") from error
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            # What a template computes with is the caller's: a missing key, a string in place of a list.
            detail = f"{type(error).__name__}: {_shown(error)}"
            raise InvalidRequest.of("chat", f"the model's chat template cannot render it: {detail}") from error
        return text


def _message(message: ChatMessage, index: int) -> dict[str, object]:
    """Returns a message as templates expect it: the form of OpenAI's API, arguments as objects."""
    rendered: dict[str, object] = {"role": message.role, "content": message.content}
    if message.name:
        rendered["name"] = message.name
    if message.tool_call_id:
        rendered["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        path = f"chat.messages[{index}].tool_calls"
        rendered["tool_calls"] = [_tool_call(call, f"{path}[{at}]") for at, call in enumerate(message.tool_calls)]
    if message.reasoning:
        # Two names are in use among templates.
        rendered["reasoning_content"] = rendered["thinking"] = message.reasoning
    return rendered


def _tool_call(call: ToolCall, path: str) -> dict[str, object]:
    try:
        arguments: object = json.loads(call.arguments_json) if call.arguments_json.strip() else {}
    except (ValueError, RecursionError) as error:
        raise InvalidRequest.of(f"{path}.arguments_json", f"must be JSON: {_shown(error)}") from error
    if not isinstance(arguments, dict):
        raise InvalidRequest.of(f"{path}.arguments_json", "must be a JSON object")
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _tool(tool: Tool) -> dict[str, object]:
    parameters = {name: _whole_numbers(value) for name, value in tool.parameters.items()}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _whole_numbers(value: JsonValue) -> JsonValue:
    """Returns the value with whole numbers as integers.

    google.protobuf.Struct only knows doubles, and a model that learned `"minimum": 0` has not learned `"minimum": 0.0`.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT_INTEGER_END:
        return int(value)
    if isinstance(value, list):
        return [_whole_numbers(item) for item in value]
    if isinstance(value, dict):
        return {name: _whole_numbers(item) for name, item in value.items()}
    return value


def _cut_at_mark(text: str, content: str) -> str:
    """Returns the text up to the end of the last message's content."""
    mark = _CONTINUATION_MARK.rstrip()
    at = text.rfind(mark)
    if at < 0 or content.strip() not in text:
        raise InvalidRequest.of(
            "chat.continue_final_message", "the model's chat template does not write the last message as it is"
        )
    was_trimmed = not text.startswith(_CONTINUATION_MARK, at)
    return text[:at].rstrip() if was_trimmed else text[:at]


def _shown(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
