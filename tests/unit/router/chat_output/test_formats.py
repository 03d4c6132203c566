"""How a model writes calls and reasoning is judged by its chat template."""

import chat_templates as templates
import pytest

from headrace.contract.chat_output import ReasoningFormat, ToolFormat
from headrace.router.chat_output.formats import detect_reasoning_format, detect_tool_format, marks_of


@pytest.mark.parametrize(
    ("template", "tool_format", "reasoning_format"),
    [
        (templates.TURNS_WITH_TOOLS, ToolFormat.HERMES, ReasoningFormat.THINK),
        (templates.HEADERS_WITH_DATE, ToolFormat.LLAMA3, None),
        (templates.BRACKETS_IN_TURNS, ToolFormat.MISTRAL, None),
        (templates.THOUGHTS_KEPT_APART, None, ReasoningFormat.THINK),
        ("{{ '<tool_call><function=' + name + '>' }}", None, None),
        ("{{ '[THINK]' + message.thinking + '[/THINK]' }}", None, ReasoningFormat.MISTRAL),
        ("{{ messages }}", None, None),
    ],
)
def test_the_template_tells(
    template: str, tool_format: ToolFormat | None, reasoning_format: ReasoningFormat | None
) -> None:
    assert detect_tool_format(template) == tool_format
    assert detect_reasoning_format(template) == reasoning_format


def test_marks_that_may_be_special_tokens() -> None:
    assert marks_of(None, None) == ()
    assert "<|python_tag|>" in marks_of(ToolFormat.LLAMA3, None)
    assert {"[TOOL_CALLS]", "[ARGS]", "[/THINK]"} <= set(marks_of(ToolFormat.MISTRAL, ReasoningFormat.MISTRAL))
