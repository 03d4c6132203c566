"""Writes a constraint in the notation of the library that follows grammars, and bounds its size and depth."""

import json
from collections.abc import Iterator

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import gbnf_to_lark

from headrace.contract.errors import FieldViolation
from headrace.contract.generation import Constraint, ConstraintKind

SIZE_LIMITS_BYTES = {
    ConstraintKind.JSON_OBJECT: 0,
    ConstraintKind.JSON_SCHEMA: 65536,
    ConstraintKind.REGEX: 16384,
    ConstraintKind.CHOICES: 65536,
    ConstraintKind.LARK: 65536,
    ConstraintKind.EBNF: 16384,
}
"""UTF-8 bytes of a constraint's text. EBNF is converted by Python code, which takes longer than the rest."""

CHOICE_COUNT = 1024

DEPTH_LIMIT = 64
"""Brackets within brackets."""

_JSON_OPTIONS = {
    # A small model may otherwise write blanks up to its limit.
    "whitespace_pattern": " ?",
    # A keyword that cannot be followed is an error, whatever the schema says of it.
    "lenient": False,
}

_OPENING, _CLOSING = frozenset("([{"), frozenset(")]}")


def constraint_field(kind: ConstraintKind) -> str:
    """Returns the path of a constraint's text in GenerateRequest."""
    return f"constraint.{kind.value}"


def find_constraint_violations(constraint: Constraint) -> Iterator[FieldViolation]:
    """Yields what is wrong with a constraint, but for what only compiling it tells."""
    field, text = constraint_field(constraint.kind), constraint.text
    if constraint.kind is ConstraintKind.JSON_OBJECT:
        return
    size, limit = len(text.encode()), SIZE_LIMITS_BYTES[constraint.kind]
    if size > limit:
        yield FieldViolation(field, f"must have at most {limit} bytes, has {size}")
    elif constraint.kind is ConstraintKind.CHOICES:
        yield from _choice_violations(text)
    elif not text and constraint.kind is not ConstraintKind.REGEX:
        yield FieldViolation(field, "must not be empty")
    elif "\0" in text:
        yield FieldViolation(field, "must not contain a null character")
    elif (depth := _bracket_depth(text)) > DEPTH_LIMIT:
        yield FieldViolation(field, f"must nest at most {DEPTH_LIMIT} brackets, nests {depth}")


def to_grammar(constraint: Constraint) -> str:
    """Returns the grammar of a constraint without violations. Whether it compiles is for the library to tell.

    Raises:
        ValueError: with the reason, if the text is not even in its notation.
    """
    grammar = _grammar_of_text(constraint)
    if not constraint.opening:
        return grammar
    # The library writes these two as they are, and the others as a list of grammars.
    is_lark = constraint.kind in (ConstraintKind.LARK, ConstraintKind.EBNF)
    answer = {"lark_grammar": grammar} if is_lark else json.loads(grammar)["grammars"][0]
    # Each grammar keeps its own names of rules.
    first = {"name": "completion", "lark_grammar": f"start: opening @answer\n{constraint.opening}"}
    return json.dumps({"grammars": [first, {**answer, "name": "answer"}]})


def _grammar_of_text(constraint: Constraint) -> str:
    match constraint.kind:
        case ConstraintKind.JSON_OBJECT:
            return _json_grammar('{"type":"object"}')
        case ConstraintKind.JSON_SCHEMA:
            return _json_grammar(constraint.text)
        case ConstraintKind.REGEX:
            return LLMatcher.grammar_from_regex(constraint.text)
        case ConstraintKind.CHOICES:
            return LLMatcher.grammar_from_regex("|".join(map(_literal, json.loads(constraint.text))))
        case ConstraintKind.LARK:
            return LLMatcher.grammar_from_lark(constraint.text)
        case ConstraintKind.EBNF:
            return LLMatcher.grammar_from_lark(_lark_of(constraint.text))


def _json_grammar(schema: str) -> str:
    parsed = json.loads(schema)
    if not isinstance(parsed, dict | bool):
        raise ValueError("a schema is a JSON object, true or false")
    if parsed is False:
        raise ValueError("nothing conforms to the schema false")
    if parsed is True:
        schema = "{}"
    return LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS)  # type: ignore[arg-type]  # a subset


def _lark_of(ebnf: str) -> str:
    try:
        return gbnf_to_lark(ebnf)
    except Exception as error:  # the converter raises nothing narrower
        raise ValueError(str(error)) from error


def _choice_violations(text: str) -> Iterator[FieldViolation]:
    texts = json.loads(text)
    field = constraint_field(ConstraintKind.CHOICES)
    if not 1 <= len(texts) <= CHOICE_COUNT:
        yield FieldViolation(f"{field}.texts", f"must have 1 to {CHOICE_COUNT} entries, has {len(texts)}")
    elif "" in texts:
        yield FieldViolation(f"{field}.texts[{texts.index('')}]", "must not be empty")


def _literal(text: str) -> str:
    """Returns a regular expression for just this text."""
    return "".join(
        character if character.isalnum() or ord(character) > 0x7F else f"\\x{ord(character):02X}" for character in text
    )


def _bracket_depth(text: str) -> int:
    """Returns how deep brackets nest, those in literals included, which none can tell without parsing."""
    depth = deepest = 0
    is_escaped = False
    for character in text:
        if is_escaped:
            is_escaped = False
        elif character == "\\":
            is_escaped = True
        elif character in _OPENING:
            depth += 1
            deepest = max(deepest, depth)
        elif character in _CLOSING:
            depth = max(0, depth - 1)
    return deepest
