"""Chat templates, against Transformers."""

import json
from datetime import datetime
from pathlib import Path

import chat_templates as templates
import pytest
from transformers import PreTrainedTokenizerBase

from headrace.contract.errors import FeatureUnsupported, InvalidRequest, StartupError
from headrace.contract.generation import ChatMessage, ChatPrompt, Tool, ToolCall, ToolChoiceMode
from headrace.router.chat_template import ChatTemplate
from headrace.router.model_card import load_model_card

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
QUESTION = ChatMessage(role="user", content='What is <2 + 2> & "3"?')
ANSWER = ChatMessage(role="assistant", content="It is four. ")
SYSTEM = ChatMessage(role="system", content="  Be brief.\n")
CONVERSATIONS = {
    "a question": (QUESTION,),
    "a system message": (SYSTEM, QUESTION),
    "several turns": (SYSTEM, QUESTION, ANSWER, ChatMessage(role="user", content="日本語で。\n")),
    "thoughts": (QUESTION, ChatMessage(role="assistant", content="<think>hm</think>\n4", reasoning="two and two")),
}
TOOL = Tool(
    name="add",
    description="Adds <numbers> — größer",
    parameters={"type": "object", "properties": {"a": {"type": "number", "minimum": 0}}, "required": ["a"]},
)
CALL = ToolCall(id="call1call", name="add", arguments_json='{"a": 2, "b": "ü", "c": [1.5, null, true]}')


def as_dicts(messages: tuple[ChatMessage, ...]) -> list[dict[str, object]]:
    """Returns messages as a user of Transformers writes them."""
    dicts = []
    for message in messages:
        entry: dict[str, object] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            arguments = {"a": 2, "b": "ü", "c": [1.5, None, True]}
            entry["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
                for call in message.tool_calls
            ]
        if message.tool_call_id:
            entry["tool_call_id"] = message.tool_call_id
        if message.reasoning:
            entry["reasoning_content"] = message.reasoning
        dicts.append(entry)
    return dicts


def rendered_by_transformers(
    tokenizer: PreTrainedTokenizerBase, template: str | None, messages: tuple[ChatMessage, ...], **options: object
) -> str:
    options = {"add_generation_prompt": True} | (TOKENS if template is not None else {}) | options
    text = tokenizer.apply_chat_template(as_dicts(messages), chat_template=template, tokenize=False, **options)
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_example_model(example_model: Path, transformers_tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    template = load_model_card(example_model, "example").compile_chat_template()
    assert template is not None
    messages = CONVERSATIONS[name]
    assert template.render(ChatPrompt(messages=messages)) == rendered_by_transformers(
        transformers_tokenizer, None, messages
    )


@pytest.mark.parametrize("family", templates.ALL)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_families(transformers_tokenizer: PreTrainedTokenizerBase, family: str, name: str) -> None:
    source, messages = templates.ALL[family], CONVERSATIONS[name]
    assert ChatTemplate(source, TOKENS).render(ChatPrompt(messages=messages)) == rendered_by_transformers(
        transformers_tokenizer, source, messages
    )


@pytest.mark.parametrize("family", templates.ALL)
@pytest.mark.parametrize("content", ["The answer is", "The answer is \n", "\n  The"])
def test_continuing_the_last_message(
    transformers_tokenizer: PreTrainedTokenizerBase, family: str, content: str
) -> None:
    messages = (QUESTION, ChatMessage(role="assistant", content=content))
    chat = ChatPrompt(messages=messages, continue_final_message=True)
    source = templates.ALL[family]
    text = ChatTemplate(source, TOKENS).render(chat)
    assert text == rendered_by_transformers(
        transformers_tokenizer, source, messages, continue_final_message=True, add_generation_prompt=False
    )
    assert text.rstrip().endswith(content.strip())


@pytest.mark.parametrize(
    ("source", "call_count"),
    [(templates.TURNS_WITH_TOOLS, 2), (templates.HEADERS_WITH_DATE, 1), (templates.BRACKETS_IN_TURNS, 2)],
)
@pytest.mark.parametrize("is_answered", [False, True])
def test_tools(
    transformers_tokenizer: PreTrainedTokenizerBase, source: str, call_count: int, *, is_answered: bool
) -> None:
    messages: tuple[ChatMessage, ...] = (SYSTEM, QUESTION)
    if is_answered:
        calls = (CALL,) * call_count
        results = [ChatMessage(role="tool", content='{"sum": "ü"}', tool_call_id=call.id) for call in calls]
        messages = (*messages, ChatMessage(role="assistant", content="", tool_calls=calls), *results)
    function = {"name": TOOL.name, "description": TOOL.description, "parameters": dict(TOOL.parameters)}
    expected = rendered_by_transformers(
        transformers_tokenizer, source, messages, tools=[{"type": "function", "function": function}]
    )
    template = ChatTemplate(source, TOKENS)
    assert template.takes_tools
    assert template.render(ChatPrompt(messages=messages, tools=(TOOL,))) == expected
    assert json.dumps(TOOL.description, ensure_ascii=False) in expected
    assert ("1.5, null, true" in expected) is is_answered


def test_whole_numbers_of_a_schema_are_written_as_such() -> None:
    """They come as doubles, since google.protobuf.Struct has nothing else."""
    tool = Tool(name="f", description="", parameters={"properties": {"a": {"minimum": 0.0, "enum": [1.0, 1.5, 1e300]}}})
    template = ChatTemplate("{{ tools[0].function.parameters | tojson }}", {})
    text = template.render(ChatPrompt(messages=(QUESTION,), tools=(tool,)))
    assert text == '{"properties": {"a": {"minimum": 0, "enum": [1, 1.5, 1e+300]}}}'


def test_arguments_reach_the_template(transformers_tokenizer: PreTrainedTokenizerBase) -> None:
    chat = ChatPrompt(messages=(QUESTION,), template_arguments={"enable_thinking": False})
    expected = rendered_by_transformers(
        transformers_tokenizer, templates.TURNS_WITH_TOOLS, (QUESTION,), enable_thinking=False
    )
    text = ChatTemplate(templates.TURNS_WITH_TOOLS, TOKENS).render(chat)
    assert text == expected
    assert text.endswith("</think>\n\n")


def test_the_date_is_that_of_the_clock_at_hand() -> None:
    template = ChatTemplate(templates.HEADERS_WITH_DATE, TOKENS, now=lambda: datetime(2031, 3, 4).astimezone())
    assert "Today is 04 March 2031\n" in template.render(ChatPrompt(messages=(QUESTION,)))


def test_tools_without_a_place_for_them_are_refused() -> None:
    template = ChatTemplate(templates.THOUGHTS_KEPT_APART, TOKENS)
    with pytest.raises(FeatureUnsupported) as caught:
        template.render(ChatPrompt(messages=(QUESTION,), tools=(TOOL,)))
    assert caught.value.field == "chat.tools"
    chat = ChatPrompt(messages=(QUESTION,), tools=(TOOL,), tool_choice=ToolChoiceMode.NONE)
    assert "add" not in template.render(chat), "tools that must not be called need no place"


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("{{ raise_exception('only one turn') }}", "refused by the model's chat template: only one turn"),
        ("{{ messages[7].role }}", "refused by the model's chat template: .*has no element 7"),
        ("{{ messages[0].content + 1 }}", "cannot render it: TypeError"),
        ("{{ 1 / 0 }}", "cannot render it: ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "refused by the model's chat template: .*unsafe"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "cannot render it: RecursionError"),
        ("{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}", "turns of its loops"),
        ("{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(20) }}", "turns of its"),
        ("{% for i in [1, 1] recursive %}{{ loop([1, 1]) if loop.depth < 20 }}{% endfor %}", "turns of its loops"),
        ("{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}", "writes more than"),
    ],
)
def test_templates_that_fail_or_never_end_are_an_error_of_the_request(source: str, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint) as caught:
        ChatTemplate(source, {}).render(ChatPrompt(messages=(QUESTION,)))
    assert [violation.field for violation in caught.value.violations] == ["chat"]


@pytest.mark.parametrize("arguments", ["{", "[1]", "null", '"text"', "[" * 100_000])
def test_arguments_of_a_call_must_be_an_object(arguments: str) -> None:
    call = ToolCall(id="", name="f", arguments_json=arguments)
    messages = (QUESTION, ChatMessage(role="assistant", content="", tool_calls=(CALL, call)))
    with pytest.raises(InvalidRequest) as caught:
        ChatTemplate(templates.TURNS_WITH_TOOLS, {}).render(ChatPrompt(messages=messages))
    assert caught.value.violations[0].field == "chat.messages[1].tool_calls[1].arguments_json"


def test_half_of_a_surrogate_pair_is_refused() -> None:
    call = ToolCall(id="", name="f", arguments_json='{"a": "\\ud800"}')
    messages = (QUESTION, ChatMessage(role="assistant", content="", tool_calls=(call,)))
    with pytest.raises(InvalidRequest, match="UnicodeEncodeError"):
        ChatTemplate(templates.TURNS_WITH_TOOLS, {}).render(ChatPrompt(messages=messages))


def test_a_template_that_changes_the_last_message_cannot_continue_it() -> None:
    messages = (QUESTION, ChatMessage(role="assistant", content="a</think>b"))
    chat = ChatPrompt(messages=messages, continue_final_message=True)
    for source in (templates.THOUGHTS_KEPT_APART, "{{ messages[0].content }}"):
        with pytest.raises(InvalidRequest) as caught:
            ChatTemplate(source, {}).render(chat)
        assert caught.value.violations[0].field == "chat.continue_final_message"


@pytest.mark.parametrize("source", ["{% for %}", "{{ x | no_such_filter }}", "{% if x %}"])
def test_a_template_that_is_not_valid_stops_the_start(source: str) -> None:
    with pytest.raises(StartupError, match="not valid in line 1"):
        ChatTemplate(source, {})


def test_a_message_cannot_write_template_code() -> None:
    message = ChatMessage(role="user", content="{{ bos_token }}{% raw %}")
    text = ChatTemplate(templates.BRACKETS_IN_TURNS, TOKENS).render(ChatPrompt(messages=(message,)))
    assert text == "<s>[INST] {{ bos_token }}{% raw %} [/INST]"
