"""How a model writes calls and reasoning is judged by its chat template."""

import chat_templates as templates
import pytest

from headrace.contract.chat_output import ReasoningFormat, ToolFormat
from headrace.router.chat_output import deepseek
from headrace.router.chat_output.call_probe import probe_tool_format
from headrace.router.chat_output.formats import detect_reasoning_format, detect_tool_format, marks_of
from headrace.router.chat_template import ChatTemplate


@pytest.mark.parametrize(
    ("template", "tool_format", "reasoning_format"),
    [
        (templates.TURNS_WITH_TOOLS, ToolFormat.HERMES, ReasoningFormat.THINK),
        (templates.HEADERS_WITH_DATE, ToolFormat.LLAMA3, None),
        (templates.BRACKETS_IN_TURNS, ToolFormat.MISTRAL, None),
        (templates.THOUGHTS_KEPT_APART, None, ReasoningFormat.THINK),
        ("{{ '[THINK]' + message.thinking + '[/THINK]' }}", None, ReasoningFormat.MISTRAL),
        ("{{ messages }}", None, None),
    ],
)
def test_the_template_tells(
    template: str, tool_format: ToolFormat | None, reasoning_format: ReasoningFormat | None
) -> None:
    assert detect_tool_format(template) == tool_format
    assert detect_reasoning_format(template) == reasoning_format


XML_BETWEEN_TAGS = """{{ tools }}
{%- for message in messages %}{{ message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>' + call.function.name }}
        {%- for name, value in call.function.arguments.items() %}{{- '<key>' ~ name ~ '</key>' ~ value }}{% endfor %}
        {{- '</tool_call>' }}
    {%- endfor %}
{%- endfor %}"""
NAMES_BEFORE_ARGUMENTS = """{{ tools }}
{%- for message in messages %}{{ message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' + (call.function.arguments | tojson) }}
    {%- endfor %}
{%- endfor %}"""


MARKS_ALONE = templates.MARKS_AND_FENCES.replace("function" + deepseek.SEPARATOR, "").replace(
    "\\n```json\\n", deepseek.SEPARATOR
)
MARKS_ALONE = MARKS_ALONE.replace("\\n```", "")


@pytest.mark.parametrize(
    ("template", "tool_format"),
    [
        (templates.MARKS_AND_FENCES, ToolFormat.DEEPSEEK),
        (MARKS_ALONE, ToolFormat.DEEPSEEK),
        (templates.TURNS_WITH_TOOLS, ToolFormat.HERMES),
        (templates.HEADERS_WITH_DATE, ToolFormat.LLAMA3),
        (templates.BRACKETS_IN_TURNS, ToolFormat.MISTRAL),
        (NAMES_BEFORE_ARGUMENTS, ToolFormat.MISTRAL),
        (XML_BETWEEN_TAGS, None),
        (templates.THOUGHTS_KEPT_APART, None),
        ("{{ tools }}{{ messages[1000].x }}<tool_call>", ToolFormat.HERMES),
        ("{{ messages }}<tool_call>", None),
    ],
)
def test_a_call_that_the_template_writes_has_to_be_found(template: str, tool_format: ToolFormat | None) -> None:
    compiled = ChatTemplate(template, {"bos_token": "<s>", "eos_token": "</s>"})
    assert probe_tool_format(template, compiled) == tool_format


def test_marks_that_may_be_special_tokens() -> None:
    assert marks_of(None, None) == ()
    assert "<|python_tag|>" in marks_of(ToolFormat.LLAMA3, None)
    assert {"[TOOL_CALLS]", "[ARGS]", "[/THINK]"} <= set(marks_of(ToolFormat.MISTRAL, ReasoningFormat.MISTRAL))
