"""The notations of reasoning and tool calls that are understood, and how a model's own is found out."""

from headrace.contract.chat_output import ReasoningFormat, ToolFormat
from headrace.router.chat_output import deepseek, hermes, llama3, mistral
from headrace.router.chat_output.found_output import CallParser

REASONING_TAGS = {
    ReasoningFormat.THINK: ("<think>", "</think>"),
    ReasoningFormat.MISTRAL: ("[THINK]", "[/THINK]"),
}
"""What stands before and behind the reasoning."""

_TOOL_MARKS = {
    ToolFormat.HERMES: (hermes.BEGIN, hermes.END),
    ToolFormat.LLAMA3: (llama3.MARK,),
    ToolFormat.MISTRAL: (mistral.MARK, mistral.CALL_ID_MARK, mistral.ARGUMENTS_MARK),
    ToolFormat.DEEPSEEK: (
        deepseek.BEGIN,
        deepseek.END,
        deepseek.CALL_BEGIN,
        deepseek.SEPARATOR,
        deepseek.CALL_END,
    ),
}


def detect_tool_format(template: str) -> ToolFormat | None:
    """Returns how a model may write tool calls, judged by the marks in its chat template."""
    return next((format_ for format_, marks in _TOOL_MARKS.items() if marks[0] in template), _unmarked(template))


def detect_reasoning_format(template: str) -> ReasoningFormat | None:
    """Returns how a model marks its reasoning, judged by its chat template."""
    return next((format_ for format_, (_, end) in REASONING_TAGS.items() if end in template), None)


def call_parser(tool_format: ToolFormat, tool_names: frozenset[str], call_limit: int | None) -> CallParser:
    """Returns a parser for one completion of a request that gave these tools.

    With a limit nothing is looked at any more behind that many calls.
    """
    match tool_format:
        case ToolFormat.HERMES:
            return hermes.HermesCalls(call_limit)
        case ToolFormat.LLAMA3:
            return llama3.Llama3Calls(tool_names, call_limit)
        case ToolFormat.MISTRAL:
            return mistral.MistralCalls(call_limit)
        case ToolFormat.DEEPSEEK:
            return deepseek.DeepSeekCalls(call_limit)


def marks_of(tool_format: ToolFormat | None, reasoning_format: ReasoningFormat | None) -> tuple[str, ...]:
    """Returns the texts that may be special tokens of a vocabulary, and that the parsers have to see."""
    tool_marks = _TOOL_MARKS[tool_format] if tool_format is not None else ()
    return (*tool_marks, *(REASONING_TAGS[reasoning_format] if reasoning_format is not None else ()))


def _unmarked(template: str) -> ToolFormat | None:
    """Recognizes the notation without a mark by the name of its member, in JSON that the template writes itself."""
    return ToolFormat.LLAMA3 if "ipython" in template and '"parameters"' in template else None
