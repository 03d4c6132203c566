"""Grammars of reasoning and calls, followed by the library that the shard follows them with."""

from functools import cache

import pytest
from llguidance import LLMatcher, LLTokenizer

from headrace.contract.chat_output import ChatOutput, ReasoningFormat, ToolFormat
from headrace.contract.generation import Constraint, ConstraintKind, Tool
from headrace.contract.token_table import TokenTable
from headrace.contract.vocabulary import Vocabulary
from headrace.router.chat_output.deepseek import BEGIN, CALL_BEGIN, CALL_END, END, SEPARATOR
from headrace.router.chat_output.notation import ChatNotation
from headrace.router.constraint_notation import to_grammar

SPECIAL = {"<end>": 256, "[TOOL_CALLS]": 257, "[ARGS]": 258, "[THINK]": 259, "[/THINK]": 260}
TOKENS = Vocabulary(
    token_bytes=(*(bytes([byte]) for byte in range(256)), *(name.encode() for name in SPECIAL)),
    special_token_ids=tuple(SPECIAL.values()),
    end_of_sequence_token_ids=(256,),
)
LOOK = Tool(name="look", description="", parameters={"properties": {"at": {"type": "integer"}}, "required": ["at"]})
WAIT = Tool(name="wait", description="", parameters={})
THINK, BRACKETS = ReasoningFormat.THINK, ReasoningFormat.MISTRAL


@cache
def tokenizer() -> LLTokenizer:
    table = TokenTable(TOKENS, len(TOKENS.token_bytes))
    return LLTokenizer(table, n_vocab=len(table.tokens), eos_token=[256], slices=[])


def is_in(constraint: Constraint, *pieces: str) -> bool:
    """Whether a completion, special tokens as pieces of their own, belongs to the language."""
    matcher = LLMatcher(tokenizer(), to_grammar(constraint), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    token_ids = [
        token_id for piece in pieces for token_id in ([SPECIAL[piece]] if piece in SPECIAL else piece.encode())
    ]
    return matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()


def calls(tool_format: ToolFormat, template: str = "", *, is_single: bool = False) -> Constraint:
    notation = ChatNotation(tool_format, template, SPECIAL.get)
    return Constraint(ConstraintKind.LARK, notation.calls((LOOK, WAIT), is_single=is_single))


HERMES_CALL = '<tool_call>\n{"name": "look", "arguments": {"at": 3}}\n</tool_call>'


def test_hermes() -> None:
    assert is_in(calls(ToolFormat.HERMES), HERMES_CALL)
    assert is_in(calls(ToolFormat.HERMES), HERMES_CALL, "\n", HERMES_CALL)
    assert not is_in(calls(ToolFormat.HERMES, is_single=True), HERMES_CALL, "\n", HERMES_CALL)
    assert not is_in(calls(ToolFormat.HERMES), "Hello.")
    assert not is_in(calls(ToolFormat.HERMES), HERMES_CALL.replace("look", "leap"))
    assert not is_in(calls(ToolFormat.HERMES), HERMES_CALL.replace("3", '"x"'))


def test_llama3() -> None:
    one, other = '{"name": "look", "parameters": {"at": 3}}', '{"name": "wait", "parameters": {}}'
    assert is_in(calls(ToolFormat.LLAMA3), one)
    assert is_in(calls(ToolFormat.LLAMA3), one, "; ", other)
    assert not is_in(calls(ToolFormat.LLAMA3, is_single=True), one, "; ", other)
    assert not is_in(calls(ToolFormat.LLAMA3), other.replace("{}", '{"a": 1}'))


def test_mistral() -> None:
    one = '{"name": "look", "arguments": {"at": 3}}'
    assert is_in(calls(ToolFormat.MISTRAL), "[TOOL_CALLS]", f"[{one}]")
    assert is_in(calls(ToolFormat.MISTRAL), "[TOOL_CALLS]", f" [{one}, {one}]")
    assert not is_in(calls(ToolFormat.MISTRAL, is_single=True), "[TOOL_CALLS]", f"[{one}, {one}]")
    # The mark is a token: its letters are not it.
    assert not is_in(calls(ToolFormat.MISTRAL), "[TOOL_", "CALLS]", f"[{one}]")


def test_mistral_with_names_before_arguments() -> None:
    call = ("[TOOL_CALLS]", "look", "[ARGS]", '{"at": 3}')
    assert is_in(calls(ToolFormat.MISTRAL, "[ARGS]"), *call)
    assert is_in(calls(ToolFormat.MISTRAL, "[ARGS]"), *call, "[TOOL_CALLS]", "wait", "[ARGS]", "{}")
    assert not is_in(calls(ToolFormat.MISTRAL, "[ARGS]", is_single=True), *call, *call)
    named = ChatNotation(ToolFormat.MISTRAL, "[ARGS]", SPECIAL.get)
    assert named.can_call("look-2.x")
    assert not named.can_call("look up")
    assert ChatNotation(ToolFormat.MISTRAL, "", SPECIAL.get).can_call("look up")


def test_deepseek() -> None:
    fenced = f'{CALL_BEGIN}function{SEPARATOR}look\n```json\n{{"at": 3}}\n```{CALL_END}'
    plain = f'{CALL_BEGIN}look{SEPARATOR}{{"at": 3}}{CALL_END}'
    for call, break_, template in ((fenced, "\n", "```json"), (plain, "", "")):
        assert is_in(calls(ToolFormat.DEEPSEEK, template), f"{BEGIN}{call}{END}")
        assert is_in(calls(ToolFormat.DEEPSEEK, template), f"{BEGIN}{call}{break_}{call}{END}")
        assert not is_in(calls(ToolFormat.DEEPSEEK, template, is_single=True), f"{BEGIN}{call}{break_}{call}{END}")
        assert not is_in(calls(ToolFormat.DEEPSEEK, template), f"{BEGIN}{call}{END}".replace("3", '"x"'))
    assert not is_in(calls(ToolFormat.DEEPSEEK), f"{BEGIN}{fenced}{END}")
    assert not ChatNotation(ToolFormat.DEEPSEEK, "", SPECIAL.get).can_call("look up")


@pytest.mark.parametrize(
    ("kind", "text", "answer"),
    [
        (ConstraintKind.JSON_OBJECT, "", "{}"),
        (ConstraintKind.JSON_SCHEMA, '{"const": "x"}', '"x"'),
        (ConstraintKind.REGEX, "[a-c]+", "abc"),
        (ConstraintKind.CHOICES, '["yes", "no"]', "yes"),
        (ConstraintKind.LARK, 'start: thoughts\nthoughts: "x"', "x"),
        (ConstraintKind.EBNF, 'root ::= "x"', "x"),
    ],
)
def test_reasoning_may_come_before_what_a_constraint_asks_for(kind: ConstraintKind, text: str, answer: str) -> None:
    def constraint(reasoning: ReasoningFormat, *, starts_inside: bool) -> Constraint:
        output = ChatOutput(reasoning_format=reasoning, starts_in_reasoning=starts_inside)
        return Constraint(kind, text, ChatNotation(None, "", SPECIAL.get).opening(output))

    tagged = constraint(THINK, starts_inside=False)
    assert is_in(tagged, answer)
    assert is_in(tagged, "<think>\na < b {\n</think>\n\n", answer)
    assert not is_in(tagged, "<think>a</think>b</think>", answer)
    assert not is_in(tagged, "hm</think>", answer)
    opened = constraint(THINK, starts_inside=True)
    assert is_in(opened, "hm</think>\n", answer)
    assert not is_in(opened, answer)
    assert not is_in(opened, "hm</think>\n\n\n", answer)
    assert is_in(constraint(BRACKETS, starts_inside=False), "[THINK]", "hm", "[/THINK]", answer)
    assert is_in(constraint(BRACKETS, starts_inside=True), "hm", "[/THINK]", answer)


def test_without_reasoning_nothing_comes_before() -> None:
    assert not ChatNotation(None, "", SPECIAL.get).opening(ChatOutput())
