"""Whatever the grammar of a forced call lets a model write is found again as a call that fits its tool's schema."""

import json
import random
from functools import cache

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from headrace.contract.chat_output import ChatOutput, ToolFormat
from headrace.contract.generation import Constraint, ConstraintKind, Tool
from headrace.contract.token_table import TokenTable
from headrace.contract.vocabulary import Vocabulary
from headrace.router.chat_output.notation import ChatNotation
from headrace.router.chat_output.parser import ChatOutputParser
from headrace.router.constraint_notation import to_grammar

MARKS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<think>", "</think>", "[THINK]", "[/THINK]")
END = 256
TOKENS = Vocabulary(
    token_bytes=(*(bytes([byte]) for byte in range(256)), b"<end>", *(mark.encode() for mark in MARKS)),
    special_token_ids=tuple(range(256, 257 + len(MARKS))),
    end_of_sequence_token_ids=(END,),
)
TOOLS = (
    Tool(
        name='look "up"',
        description="",
        parameters={
            "properties": {
                "at": {"type": "string", "maxLength": 6},
                "deep": {"type": "array", "items": {"enum": [1.5, None, '}"']}, "maxItems": 2},
                "kind": {"$ref": "#/$defs/kind"},
            },
            "$defs": {"kind": {"enum": ["</tool_call>", "[ARGS]{"]}},
            "required": ["kind"],
            "additionalProperties": False,
        },
    ),
    Tool(name="wait-2.x", description="", parameters={}),
    Tool(
        name="größe",
        description="",
        parameters={"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 400}}}
        | {"additionalProperties": False},
    ),
)
NAMED = "{{ '[TOOL_CALLS]' + name + '[ARGS]' }}"


@cache
def tokenizer() -> LLTokenizer:
    size = len(TOKENS.token_bytes)
    table = TokenTable(TOKENS, size)

    def build() -> LLTokenizer:
        return LLTokenizer(table, n_vocab=size, eos_token=table.end_token_ids, slices=[])

    table.cut = build().greedy_tokenize
    return build()


def mark_id(text: str) -> int | None:
    return 257 + MARKS.index(text) if text in MARKS else None


def no_mark_id(_text: str) -> None:
    return None


def written(grammar: str, numbers: random.Random, limit: int = 4000) -> str:
    """Returns what a model with no idea writes under a grammar; the end is drawn as any token."""
    matcher = LLMatcher(tokenizer(), grammar)
    assert not matcher.is_error(), matcher.get_error()
    mask = allocate_token_bitmask(1, len(TOKENS.token_bytes))
    data = b""
    for _ in range(limit):
        fill_next_token_bitmask(matcher, mask)
        bits = [token_id for token_id in range(len(TOKENS.token_bytes)) if mask[0, token_id // 32] >> token_id % 32 & 1]
        token_id = numbers.choice(bits)
        if END in bits and (token_id == END or numbers.random() < 0.3):
            return data.decode("utf-8", "replace")
        data += TOKENS.token_bytes[token_id]
        assert matcher.consume_token(token_id)
    raise AssertionError("it never ends")


@pytest.mark.parametrize(("tool_format", "template"), [(one, "") for one in ToolFormat] + [(ToolFormat.MISTRAL, NAMED)])
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), is_single=st.booleans(), has_special_marks=st.booleans())
def test_what_a_forced_model_writes_are_calls(
    tool_format: ToolFormat, template: str, seed: int, is_single: bool, has_special_marks: bool
) -> None:
    notation = ChatNotation(tool_format, template, mark_id if has_special_marks else no_mark_id)
    tools = tuple(tool for tool in TOOLS if notation.can_call(tool.name))
    assert {"wait-2.x", "größe"} <= {tool.name for tool in tools}
    output = ChatOutput(
        tool_format=tool_format,
        tool_names=frozenset(tool.name for tool in tools),
        parallel_tool_calls=not is_single,
    )
    calls = Constraint(ConstraintKind.LARK, notation.calls(tools, is_single=is_single))
    text = written(to_grammar(calls), random.Random(seed))
    parser = ChatOutputParser(output, "a completion")
    found = [parser.push(text), parser.flush()]
    assert "".join(piece.text for piece in found) == ""
    typed = [call for piece in found for call in piece.tool_calls]
    assert len(typed) == 1 if is_single else typed
    by_name = {tool.name: tool for tool in tools}
    for call in typed:
        jsonschema.validate(json.loads(call.arguments_json), by_name[call.name].parameters)
        if not by_name[call.name].parameters:
            assert json.loads(call.arguments_json) == {}
