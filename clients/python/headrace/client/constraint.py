"""Languages that a completion has to belong to, and the mark it may carry."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headrace.v1 import generate_service_pb2 as generate_pb


@dataclass(frozen=True, slots=True)
class JsonObject:
    """Any JSON object."""


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """JSON that conforms to a schema."""

    schema: Mapping[str, object] | str
    """JSON Schema, as a mapping or as JSON text."""


@dataclass(frozen=True, slots=True)
class Regex:
    """Text that matches a regular expression as a whole."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Choices:
    """One of a few texts."""

    texts: Sequence[str]


@dataclass(frozen=True, slots=True)
class LarkGrammar:
    """A context-free grammar in Lark syntax."""

    text: str


@dataclass(frozen=True, slots=True)
class EbnfGrammar:
    """A context-free grammar in EBNF, as llama.cpp writes it."""

    text: str


Constraint = JsonObject | JsonSchema | Regex | Choices | LarkGrammar | EbnfGrammar


@dataclass(frozen=True, slots=True, kw_only=True)
class Watermark:
    """A statistical watermark. None leaves a strength to the server."""

    enabled: bool = True
    key: str = ""
    """Name of the key; empty is the server's default key."""
    gamma: float | None = None
    """Share of the vocabulary that is favoured; in (0, 1)."""
    delta: float | None = None
    """Added to the favoured logits; positive."""


def constraint_to_proto(constraint: Constraint) -> generate_pb.Constraint:
    """Returns the message for a constraint."""
    match constraint:
        case JsonObject():
            return generate_pb.Constraint(json_object=True)
        case JsonSchema(schema):
            text = schema if isinstance(schema, str) else json.dumps(schema)
            return generate_pb.Constraint(json_schema=text)
        case Regex(pattern):
            return generate_pb.Constraint(regex=pattern)
        case Choices(texts):
            return generate_pb.Constraint(choices=generate_pb.Choices(texts=texts))
        case LarkGrammar(text):
            return generate_pb.Constraint(lark_grammar=text)
        case EbnfGrammar(text):
            return generate_pb.Constraint(ebnf_grammar=text)


def watermark_to_proto(watermark: Watermark) -> generate_pb.Watermark:
    """Returns the message for a watermark."""
    return generate_pb.Watermark(
        enabled=watermark.enabled, key=watermark.key, gamma=watermark.gamma, delta=watermark.delta
    )
