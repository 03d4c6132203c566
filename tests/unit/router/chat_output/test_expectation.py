"""What is expected of a completion follows from the conversation, and from where its prompt ends."""

from dataclasses import replace

import pytest

from headrace.contract.chat_output import ChatOutput, ReasoningFormat, ToolFormat
from headrace.contract.generation import ChatMessage, ChatPrompt, Tool, ToolChoiceMode
from headrace.router.chat_output.expectation import expected_output
from headrace.router.model_card import ModelCard

CARD = ModelCard(
    name="m",
    architecture="llama",
    context_token_count=100,
    vocabulary_size=100,
    end_of_sequence_token_ids=(2,),
    chat_template="",
    takes_tools=True,
    tool_format=ToolFormat.HERMES,
    reasoning_format=ReasoningFormat.THINK,
)
TOOL = Tool(name="look", description="", parameters={})
CHAT = ChatPrompt(messages=(ChatMessage(role="user", content="What does <think> mean?"),), tools=(TOOL,))


def continuing(text: str) -> ChatPrompt:
    answer = ChatMessage(role="assistant", content=text)
    return ChatPrompt(messages=(*CHAT.messages, answer), continue_final_message=True)


def reasoning(chat: ChatPrompt, prompt: str) -> tuple[ReasoningFormat | None, bool]:
    output = expected_output(chat, prompt, CARD)
    return output.reasoning_format, output.starts_in_reasoning


OPEN, INSIDE, NONE = (ReasoningFormat.THINK, False), (ReasoningFormat.THINK, True), (None, False)


@pytest.mark.parametrize(
    ("chat", "prompt", "expected"),
    [
        (CHAT, "What does <think> mean?<assistant>\n", OPEN),
        (CHAT, "<assistant>\n<think>\n", INSIDE),
        (CHAT, "<assistant>\n<think>\n\n</think>\n\n", NONE),
        (continuing(""), "<assistant>\n", OPEN),
        (continuing("Four"), "<assistant>\nFour", NONE),
        (continuing("<think>hm"), "<assistant>\n<think>hm", INSIDE),
        (continuing("<think>hm</think>Fo"), "<assistant>\n<think>hm</think>Fo", NONE),
    ],
)
def test_where_reasoning_may_be(chat: ChatPrompt, prompt: str, expected: tuple[ReasoningFormat | None, bool]) -> None:
    assert reasoning(chat, prompt) == expected


def test_a_model_that_marks_no_reasoning_has_none() -> None:
    output = expected_output(CHAT, "<assistant><think>", replace(CARD, reasoning_format=None))
    assert (output.reasoning_format, output.starts_in_reasoning) == NONE


def test_calls_are_looked_for_where_tools_may_be_called() -> None:
    output = expected_output(CHAT, "", CARD)
    assert (output.tool_format, output.tool_names) == (ToolFormat.HERMES, {"look"})
    assert output.parallel_tool_calls
    none = replace(CHAT, tool_choice=ToolChoiceMode.NONE)
    for chat, card in [(none, CARD), (replace(CHAT, tools=()), CARD), (CHAT, replace(CARD, tool_format=None))]:
        assert expected_output(chat, "", replace(card, reasoning_format=None)).is_empty


def test_one_call_ends_a_completion_where_one_was_asked_for() -> None:
    assert not expected_output(replace(CHAT, parallel_tool_calls=False), "", CARD).parallel_tool_calls
    named = replace(CHAT, tool_choice=ToolChoiceMode.NAMED, tool_choice_name="look")
    assert not expected_output(named, "", CARD).parallel_tool_calls
    assert ChatOutput().is_empty
