"""Constraints become grammars in a process of their own, which may die without harm."""

import json
import os
import signal
from collections.abc import Iterator

import pytest

from headrace.contract.errors import InvalidRequest
from headrace.contract.generation import Constraint, ConstraintKind
from headrace.contract.vocabulary import Vocabulary
from headrace.router.constraint_compiler import ConstraintCompiler
from headrace.router.constraint_notation import CHOICE_COUNT, find_constraint_violations, to_grammar

TOKENS = Vocabulary(
    token_bytes=(*(bytes([byte]) for byte in range(256)), b"<end>"),
    special_token_ids=(256,),
    end_of_sequence_token_ids=(256,),
)
DEEP_RULES = "start: r0\n" + "".join(f"r{n}: r{n + 1}\n" for n in range(3000)) + 'r3000: "a"'


@pytest.fixture
def compiler() -> Iterator[ConstraintCompiler]:
    made = ConstraintCompiler(TOKENS)
    yield made
    made.executor.shutdown()
    made.close()


def reason_of(compiler: ConstraintCompiler, kind: ConstraintKind, text: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        compiler.compile(Constraint(kind, text))
    [violation] = caught.value.violations
    assert violation.field == f"constraint.{kind.value}"
    return violation.description


def test_what_is_wrong_is_said(compiler: ConstraintCompiler) -> None:
    kinds = ConstraintKind
    assert "unclosed group" in reason_of(compiler, kinds.REGEX, "(")
    assert "Invalid type: blob" in reason_of(compiler, kinds.JSON_SCHEMA, '{"type": "blob"}')
    assert "uniqueItems" in reason_of(compiler, kinds.JSON_SCHEMA, '{"type": "array", "uniqueItems": true}')
    assert "Expecting" in reason_of(compiler, kinds.JSON_SCHEMA, "{")
    assert "a schema is" in reason_of(compiler, kinds.JSON_SCHEMA, "[]")
    assert "nothing conforms" in reason_of(compiler, kinds.JSON_SCHEMA, "false")
    assert "'missing' not found" in reason_of(compiler, kinds.EBNF, "root ::= missing")
    assert "no text belongs to it" in reason_of(compiler, kinds.LARK, "start: start")


def test_many_optional_members_cost_nothing(compiler: ConstraintCompiler) -> None:
    """As a regular expression of all their subsets they would take minutes from eight on."""
    members = {f"member_{number}": {"type": "string", "maxLength": 9} for number in range(60)}
    schema = {"type": "object", "properties": members, "additionalProperties": False}
    assert compiler.compile(Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(schema)))


def test_a_schema_needs_no_members(compiler: ConstraintCompiler) -> None:
    for schema in ('{"type": "array", "items": {"type": "integer"}}', '{"enum": ["a", 1]}', '{"anyOf": [{}, {}]}'):
        assert compiler.compile(Constraint(ConstraintKind.JSON_SCHEMA, schema))


def test_the_schema_true_is_any_json(compiler: ConstraintCompiler) -> None:
    grammars = [compiler.compile(Constraint(ConstraintKind.JSON_SCHEMA, text)) for text in ("true", "{}", " true ")]
    assert grammars[0] == grammars[1] == grammars[2]


def test_a_keyword_cannot_be_dropped_by_the_schema_itself(compiler: ConstraintCompiler) -> None:
    lenient = {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}
    assert "uniqueItems" in reason_of(compiler, ConstraintKind.JSON_SCHEMA, json.dumps(lenient))


def test_a_process_that_dies_is_replaced(compiler: ConstraintCompiler) -> None:
    good = Constraint(ConstraintKind.REGEX, "a+")
    assert compiler.compile(good) == to_grammar(good)
    assert "too deep" in reason_of(compiler, ConstraintKind.LARK, DEEP_RULES)
    assert compiler.compile(Constraint(ConstraintKind.REGEX, "b+"))
    assert compiler._process is not None
    os.kill(compiler._process.pid, signal.SIGKILL)
    compiler._process.wait()
    # What was tried is kept, so no process is asked.
    assert compiler.compile(good) == to_grammar(good)


VIOLATIONS = [
    (Constraint(ConstraintKind.REGEX, "a" * 16385), "at most 16384 bytes, has 16385"),
    (Constraint(ConstraintKind.JSON_SCHEMA, ""), "must not be empty"),
    (Constraint(ConstraintKind.LARK, "(" * 65 + ")" * 65), "at most 64 brackets, nests 65"),
    (Constraint(ConstraintKind.CHOICES, "[]"), f"1 to {CHOICE_COUNT} entries, has 0"),
    (Constraint(ConstraintKind.CHOICES, '["a", ""]'), "must not be empty"),
    (Constraint(ConstraintKind.REGEX, "a\0"), "null character"),
]


@pytest.mark.parametrize(("constraint", "expected"), VIOLATIONS, ids=[expected for _, expected in VIOLATIONS])
def test_limits_are_named(constraint: Constraint, expected: str) -> None:
    [violation] = find_constraint_violations(constraint)
    assert expected in violation.description


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint(ConstraintKind.JSON_OBJECT, ""),
        Constraint(ConstraintKind.REGEX, ""),
        Constraint(ConstraintKind.REGEX, r"\(" * 100),
        Constraint(ConstraintKind.REGEX, "()" * 100),
        Constraint(ConstraintKind.CHOICES, '["a"]'),
    ],
)
def test_what_only_looks_wrong_is_let_through(constraint: Constraint) -> None:
    assert list(find_constraint_violations(constraint)) == []
