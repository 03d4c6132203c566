"""Writes grammars of what a model may write in a chat: its reasoning, and calls of tools in its own notation."""

import json
from collections.abc import Callable, Sequence

from headrace.contract.chat_output import ChatOutput, ToolFormat
from headrace.contract.generation import Tool
from headrace.router.chat_output import deepseek, hermes, mistral
from headrace.router.chat_output.call_machine import is_bare_name
from headrace.router.chat_output.formats import REASONING_TAGS

_LINE_BREAK = r'"\n"'
_FENCE_END = "\n```"

_JSON_OPTIONS = {"whitespace_pattern": " ?", "lenient": False}
"""For arguments, as for any JSON that a constraint asks for."""


class ChatNotation:
    """The notations of one model. Grammars are Lark, as llguidance reads it."""

    __slots__ = ("_mark_id", "_tool_format", "_writes_fences", "_writes_names")

    def __init__(self, tool_format: ToolFormat | None, template: str, mark_id: Callable[[str], int | None]) -> None:
        """Takes a model's notation.

        Args:
            tool_format: How it writes calls.
            template: Its chat template, which tells Mistral's two notations apart, and DeepSeek's.
            mark_id: Returns the id of a text that is a special token of the model, None of any other.
        """
        self._tool_format = tool_format
        self._writes_fences = deepseek.FENCE in template
        self._writes_names = mistral.ARGUMENTS_MARK in template
        self._mark_id = mark_id

    def calls(self, tools: Sequence[Tool], *, is_single: bool) -> str:
        """Returns the grammar of one call of one of these tools, or of several calls, from the rule `start`.

        Raises:
            ValueError: nobody knows how the model writes calls.
        """
        rules = [f"arguments_{index}: %json {arguments_schema(tool)}" for index, tool in enumerate(tools)]
        match self._tool_format:
            case ToolFormat.HERMES:
                start = "call" if is_single else f"call ({_LINE_BREAK} call)*"
                begin, end = self._mark(hermes.BEGIN), self._mark(hermes.END)
                rules.append(f"call: {begin} {_LINE_BREAK} object {_LINE_BREAK} {end}")
                rules.append(_objects(tools, "arguments"))
            case ToolFormat.LLAMA3:
                start = "object" if is_single else 'object ("; " object)*'
                rules.append(_objects(tools, "parameters"))
            case ToolFormat.MISTRAL if self._writes_names:
                start = "call" if is_single else "call+"
                rules.append(self._named_calls(tools))
            case ToolFormat.MISTRAL:
                calls = "object" if is_single else 'object (", " object)*'
                start = f'{self._mark(mistral.MARK)} / ?/ "[" {calls} "]"'
                rules.append(_objects(tools, "arguments"))
            case ToolFormat.DEEPSEEK:
                separator = f" {_LINE_BREAK} " if self._writes_fences else " "
                calls = "call" if is_single else f"call ({separator} call)*"
                start = f"{self._mark(deepseek.BEGIN)} {calls} {self._mark(deepseek.END)}"
                rules.append(self._marked_calls(tools))
            case None:
                raise ValueError("the notation of calls is not known")
        return "\n".join([f"start: {start}", *rules]) + "\n"

    def can_call(self, name: str) -> bool:
        """Whether a tool of this name can be called: some notations know the end of a name by its characters."""
        is_bare = self._tool_format is ToolFormat.DEEPSEEK or (
            self._tool_format is ToolFormat.MISTRAL and self._writes_names
        )
        return not is_bare or is_bare_name(name)

    def opening(self, output: ChatOutput) -> str:
        """Returns rules for the reasoning before an answer, from the rule `opening`; empty if there is none."""
        if output.reasoning_format is None:
            return ""
        begin, end = REASONING_TAGS[output.reasoning_format]
        if self._mark_id(end) is None:
            thoughts = f"thoughts[suffix={_literal(end)}]: /(?s:.*)/"
        else:
            thoughts = f"thoughts: /(?s:.*)/ {self._mark(end)}"
        whole = r"thoughts /\n{0,2}/"
        opening = whole if output.starts_in_reasoning else f"({self._mark(begin)} {whole})?"
        return f"opening: {opening}\n{thoughts}\n"

    def _named_calls(self, tools: Sequence[Tool]) -> str:
        mark, arguments_mark = self._mark(mistral.MARK), self._mark(mistral.ARGUMENTS_MARK)
        calls = [f"{mark} {_literal(tool.name)} {arguments_mark} arguments_{n}" for n, tool in enumerate(tools)]
        return f"call: {' | '.join(calls)}"

    def _marked_calls(self, tools: Sequence[Tool]) -> str:
        begin, separator, end = map(self._mark, (deepseek.CALL_BEGIN, deepseek.SEPARATOR, deepseek.CALL_END))
        calls = []
        for place, tool in enumerate(tools):
            if self._writes_fences:
                name = _literal(f"{tool.name}\n{deepseek.FENCE}\n")
                calls.append(f'{begin} "function" {separator} {name} arguments_{place} {_literal(_FENCE_END)} {end}')
            else:
                calls.append(f"{begin} {_literal(tool.name)} {separator} arguments_{place} {end}")
        return f"call: {' | '.join(calls)}"

    def _mark(self, text: str) -> str:
        token_id = self._mark_id(text)
        return _literal(text) if token_id is None else f"<[{token_id}]>"


def arguments_schema(tool: Tool) -> str:
    """Returns the schema of a tool's arguments as text. A tool without parameters takes none."""
    schema = {"type": "object", **(tool.parameters or {"additionalProperties": False})}
    return json.dumps({**schema, "x-guidance": _JSON_OPTIONS}, ensure_ascii=False)


def _objects(tools: Sequence[Tool], arguments_key: str) -> str:
    """Returns the rule `object`: a call as a JSON object, its name before its arguments."""
    heads = [f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "{arguments_key}": ' for tool in tools]
    calls = [f"{_literal(head)} arguments_{place} {_literal('}')}" for place, head in enumerate(heads)]
    return f"object: {' | '.join(calls)}"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
