"""However a completion is divided, the same reasoning, text and calls are found in it, and nothing is lost."""

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from headrace.contract.chat_output import ChatOutput, ReasoningFormat, ToolFormat
from headrace.contract.generation import ToolCallDelta
from headrace.router.chat_output.parser import ChatOutputParser

FRAGMENTS = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "<|python_tag|>",
    "<think>",
    "</think>",
    '{"name": "look", "arguments": {"at": "}"}}',
    '{"name": "look", "parameters": {}}',
    '{"name": "wait"}',
    "look",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁call▁begin｜>look<｜tool▁sep｜>",
    "function<｜tool▁sep｜>look\n```json\n",
    "\n```",
    "{",
    "}",
    "[",
    "]",
    ",",
    ";",
    '"',
    "\\",
    "\n",
    " ",
    "Hello.",
    "é",
]

texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=14).map("".join)
outputs = st.builds(
    ChatOutput,
    tool_format=st.sampled_from([None, *ToolFormat]),
    tool_names=st.just(frozenset({"look"})),
    parallel_tool_calls=st.booleans(),
    reasoning_format=st.sampled_from([None, *ReasoningFormat]),
    starts_in_reasoning=st.booleans(),
)


def parse(output: ChatOutput, pieces: list[str]) -> tuple[str, str, tuple[ToolCallDelta, ...]]:
    parser = ChatOutputParser(output, "a completion")
    found = [*(parser.push(piece) for piece in pieces), parser.flush()]
    return (
        "".join(piece.reasoning for piece in found),
        "".join(piece.text for piece in found),
        tuple(call for piece in found for call in piece.tool_calls),
    )


@given(outputs, texts, st.data())
def test_how_a_completion_is_divided_changes_nothing(output: ChatOutput, text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)) | {0, len(text)})
    pieces = [text[start:end] for start, end in itertools.pairwise(cuts)]
    whole = parse(output, [text])
    assert parse(output, pieces) == whole
    assert parse(output, list(text)) == whole


@given(outputs, texts)
def test_calls_are_well_formed_and_without_any_nothing_but_reasoning_is_taken(output: ChatOutput, text: str) -> None:
    reasoning, answer, calls = parse(output, [text])
    for index, call in enumerate(calls):
        assert call.index == index
        assert call.name
        assert isinstance(json.loads(call.arguments_json), dict)
    assert len({call.id for call in calls}) == len(calls)
    assert output.parallel_tool_calls or len(calls) <= 1
    if not calls:
        assert text.endswith(answer)
        assert reasoning in text
        if output.reasoning_format is None:
            assert answer == text


@given(texts)
def test_without_a_format_text_passes_at_once(text: str) -> None:
    parser = ChatOutputParser(ChatOutput(), "a completion")
    assert parser.push(text).text == text
