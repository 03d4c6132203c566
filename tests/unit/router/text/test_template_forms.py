"""Templates differ in the form of what they take. What a template needs is found out, so that no call is lost."""

import chat_templates as templates
import pytest

from headrace.contract.errors import FeatureUnsupported
from headrace.contract.generation import ChatMessage, ChatPrompt, Tool, ToolCall
from headrace.router.chat_template import ChatTemplate

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TOOL = Tool(name="weather", description="The weather.", parameters={"type": "object", "properties": {}})
QUESTION = ChatMessage(role="user", content="Is it cold?")
CALL = ToolCall(id="call1call", name="weather", arguments_json=' {"at": "Øslo", "exact": 1.0} ')
ASKED = ChatMessage(role="assistant", content="", tool_calls=(CALL,))
TOLD = ChatMessage(role="tool", content="4 degrees", tool_call_id="call1call", name="weather")


def test_arguments_are_text_where_a_template_joins_them_to_text() -> None:
    template = ChatTemplate(templates.ARGUMENTS_AS_TEXT, TOKENS)
    assert template.render(ChatPrompt(messages=(QUESTION, ASKED, TOLD))) == (
        "<|user|>Is it cold?<|Assistant|><|call|>function<|sep|>weather\n```json\n"
        '{"at": "Øslo", "exact": 1.0}\n```<|end call|><|end|><|output|>4 degrees<|end output|>'
    )


def test_an_answer_after_calls_is_still_an_answer() -> None:
    answer = ChatMessage(role="assistant", content="<think>4 is cold</think>Yes.")
    text = ChatTemplate(templates.ARGUMENTS_AS_TEXT, TOKENS).render(
        ChatPrompt(messages=(QUESTION, ASKED, TOLD, answer, QUESTION))
    )
    assert text.endswith("<|end output|>Yes.<|end|><|user|>Is it cold?<|Assistant|><think>\n")


@pytest.mark.parametrize(
    ("written", "call"),
    [
        # Python's way to write an object is not what any model was trained on.
        ("{{ call.arguments }}", '{"at": "Øslo", "exact": 1.0}'),
        ("{{ call.arguments ~ '' }}", '{"at": "Øslo", "exact": 1.0}'),
        ("{{ call.arguments | tojson }}", '{"at": "Øslo", "exact": 1.0}'),
        ("{{ call.arguments if call.arguments is string else call.arguments | tojson(indent=1) }}",
         '{\n "at": "Øslo",\n "exact": 1.0\n}'),
        ("{% for name, value in call.arguments.items() %}<{{ name }}>{{ value }}{% endfor %}", "<at>Øslo<exact>1.0"),
        ("{{ call.arguments | tojson }}{{ message.content }}", '{"at": "Øslo", "exact": 1.0}'),
        ("{{ call.arguments | tojson }}{{ message.content + '!' }}", '{"at": "Øslo", "exact": 1.0}!'),
        ("{{ call.arguments | tojson if message.content is none }}", '{"at": "Øslo", "exact": 1.0}'),
    ],
)  # fmt: skip
def test_what_a_template_needs_is_found_out(written: str, call: str) -> None:
    source = (
        "{% for message in messages %}{% for item in message.tool_calls or [] %}{% set call = item.function %}"
        "{{ call.name }}" + written + "{% else %}{{ message.content }}{% endfor %}{% endfor %}"
    )
    text = ChatTemplate(source, TOKENS).render(ChatPrompt(messages=(QUESTION, ASKED, TOLD)))
    assert text == f"Is it cold?weather{call}4 degrees"


def test_a_template_that_goes_through_its_tools_unasked_gets_none() -> None:
    template = ChatTemplate(templates.TOOLS_TAKEN_FOR_GRANTED, TOKENS)
    assert template.render(ChatPrompt(messages=(QUESTION,))) == (
        "<s><|im_start|>system\nYou may call <tools>\n</tools><|im_end|>\n"
        "<|im_start|>user\nIs it cold?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_conversations_with_tools_have_a_template_of_their_own() -> None:
    plain = "{% for message in messages %}[{{ message.content }}]{% endfor %}"
    template = ChatTemplate(plain, TOKENS, tool_template=templates.TOOLS_TAKEN_FOR_GRANTED)
    assert template.takes_tools
    assert template.render(ChatPrompt(messages=(QUESTION,))) == "[Is it cold?]"
    assert "weather: The weather." in template.render(ChatPrompt(messages=(QUESTION,), tools=(TOOL,)))
    # Its calls are told even where no tool may be called any more.
    text = template.render(ChatPrompt(messages=(QUESTION, ASKED, TOLD)))
    assert '<tool_call>\n{"name": "weather", "arguments": {"at": "Øslo", "exact": 1.0}}\n</tool_call>' in text


def test_calls_without_a_place_for_them_are_refused() -> None:
    template = ChatTemplate("{% for message in messages %}{{ message.content }}{% endfor %}", TOKENS)
    with pytest.raises(FeatureUnsupported) as caught:
        template.render(ChatPrompt(messages=(QUESTION, ASKED, TOLD)))
    assert caught.value.field == "chat.messages[1].tool_calls"
