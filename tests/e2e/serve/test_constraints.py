"""Constraints on the real model, through the client: in the language always, and the same in any company."""

import asyncio
import json
import os
import random
import re
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from headrace.client.aio import AsyncClient
from headrace.client.constraint import Choices, Constraint, EbnfGrammar, JsonObject, JsonSchema, LarkGrammar, Regex
from headrace.client.results import FinishReason
from headrace.contract.errors import InvalidRequest

Serve = Callable[..., AbstractAsyncContextManager[Any]]
FLOAT32 = ("--dtype=float32", "--thread-count=2")
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
PATTERNS = [r"[a-z]{3,9}@[a-z]{3,8}\.(com|org)", r"\d{4}-\d{2}-\d{2}", r"(ab|ba){4} [αβγ]{2}"]
LISTS = 'start: "[" item ("," item)* "]"\nitem: /[0-9]{1,3}/ | start\n'
EBNF = 'root ::= "(" word (", " word){2} ")"\nword ::= [a-z]{2,6} | "\\"" [A-Z]+ "\\""\n'


def random_schema(numbers: random.Random, depth: int = 0) -> dict[str, Any]:
    """Returns a schema whose values are all short."""
    leaves: list[dict[str, Any]] = [
        {"type": "integer", "minimum": numbers.randrange(-50, 0), "maximum": numbers.randrange(1, 500)},
        {"type": "boolean"},
        {"type": "null"},
        {"enum": [numbers.randrange(9), "one", None]},
        {"const": "fixed"},
        {"type": "string", "pattern": f"^[a-c]{{1,{numbers.randrange(2, 6)}}}$"},
        {"type": "string", "minLength": 2, "maxLength": 6},
    ]
    if depth == 2 or (depth > 0 and numbers.random() < 0.4):
        return numbers.choice(leaves)
    if numbers.random() < 0.3:
        return {"type": "array", "items": random_schema(numbers, depth + 1), "minItems": 1, "maxItems": 3}
    if numbers.random() < 0.2:
        return {"anyOf": [random_schema(numbers, depth + 1), random_schema(numbers, depth + 1)]}
    names = [f"p{index}" for index in range(numbers.randrange(1, 4))]
    return {
        "type": "object",
        "properties": {name: random_schema(numbers, depth + 1) for name in names},
        "required": names[:2],
        "additionalProperties": False,
    }


def bound_threads(process_id: int) -> list[set[int]]:
    """Returns the processor of each thread of a process that may run on one alone."""
    threads = (int(task.name) for task in Path(f"/proc/{process_id}/task").iterdir())
    return [processors for thread in threads if len(processors := os.sched_getaffinity(thread)) == 1]


async def texts_of(client: AsyncClient, constraints: list[Constraint], **options: Any) -> list[str]:
    """Returns what is generated under each constraint, all at once. Each has to end by itself."""
    answers = await asyncio.gather(
        *(
            client.generate("Here it is: ", constraint=constraint, **{"max_new_token_count": 200, **options})
            for constraint in constraints
        )
    )
    for answer in answers:
        assert answer.completions[0].end.reason is FinishReason.END_OF_SEQUENCE, answer.text
    return [answer.text for answer in answers]


async def test_every_kind_in_one_batch(serve: Serve) -> None:
    schemas = [random_schema(random.Random(number)) for number in range(24)]
    processors = sorted(os.sched_getaffinity(0))[:2]
    binding = ("--dtype=float32", f"--cpu-binding={','.join(map(str, processors))}")
    async with serve("serve", *binding) as server, AsyncClient(server.address) as client:
        for options in ({"temperature": 0.0}, {"temperature": 1.2, "seed": 5}):
            constraints = [*map(JsonSchema, schemas), *map(Regex, PATTERNS), Choices(["naïve 😀", "a/b\n"])]
            texts = await texts_of(client, [*constraints, LarkGrammar(LISTS), EbnfGrammar(EBNF)], **options)
            for schema, text in zip(schemas, texts, strict=False):
                jsonschema.validate(json.loads(text), schema)
            *matches, choice, nested, words = texts[len(schemas) :]
            for pattern, text in zip(PATTERNS, matches, strict=True):
                assert re.fullmatch(pattern, text)
            assert choice in ("naïve 😀", "a/b\n")
            assert re.fullmatch(r"[\[\],0-9]+", nested)
            assert isinstance(json.loads(re.sub(r"\b0+(?=\d)", "", nested)), list)
            assert re.fullmatch(r"\((([a-z]{2,6}|\"[A-Z]+\")(, )?){3}\)", words)
        model = await client.get_model()
        assert "constraint" in model.supported_fields
        # The thread that makes masks must not share the processor of one that computes.
        [shard] = server.program.children()
        assert sorted(map(list, bound_threads(shard))) == [[processor] for processor in processors]


async def test_any_json_object(serve: Serve) -> None:
    async with serve("serve", *FLOAT32) as server, AsyncClient(server.address) as client:
        answer = await client.generate(
            "A cat as JSON:", constraint=JsonObject(), temperature=0.0, max_new_token_count=256
        )
        if answer.completions[0].end.reason is FinishReason.END_OF_SEQUENCE:
            assert isinstance(json.loads(answer.text), dict)
        else:
            assert answer.text.lstrip(" \n").startswith("{"), "a completion that was cut is a prefix of the language"
        # The shortest object is longer than the least count, or the grammar decides: it ends either way.
        forced = await client.generate("x", constraint=Regex("ab"), min_new_token_count=20, temperature=0.0)
        assert forced.text == "ab"
        assert forced.completions[0].end.reason is FinishReason.END_OF_SEQUENCE


async def test_chunks_preemption_and_company_change_nothing(serve: Serve) -> None:
    constraints: list[Constraint] = [
        JsonSchema(PERSON),
        Regex(r"([a-z]{2,7} ){25}\."),
        JsonSchema(PERSON),
        LarkGrammar(LISTS),
    ]
    options: dict[str, Any] = {"temperature": 0.9, "seed": 11, "max_new_token_count": 80}

    async def run(client: AsyncClient, *, together: bool) -> list[str]:
        calls = [client.generate("Tell me of a cat. " * 3, constraint=one, **options) for one in constraints]
        calls.append(client.generate("Tell me of a cat. " * 3, **options))
        if together:
            return [answer.text for answer in await asyncio.gather(*calls)]
        return [(await call).text for call in calls]

    async with serve("serve", *FLOAT32) as server, AsyncClient(server.address) as client:
        alone = await run(client, together=False)
        assert await run(client, together=True) == alone
    # So few blocks that the requests preempt each other, and chunks smaller than the prompt.
    narrow = ("--block-count=8", "--context-token-limit=112", "--prefill-chunk-token-limit=5")
    async with serve("serve", *FLOAT32, *narrow) as server, AsyncClient(server.address) as client:
        # The first time the grammars are compiled, and the requests may come too late to meet.
        for _ in range(5):
            assert await run(client, together=True) == alone
            [replica] = await client.list_replicas()
            if replica.load.preemption_count > 0:
                break
        assert replica.load.preemption_count > 0


async def test_a_shard_that_dies_midway_changes_nothing(serve: Serve) -> None:
    options: dict[str, Any] = {"constraint": Regex(r"([a-z]{2,7} ){25}\."), "temperature": 0.9, "seed": 3}
    async with serve("serve", *FLOAT32) as server, AsyncClient(server.address) as client:
        expected = (await client.generate("One two", max_new_token_count=150, **options)).text
        text = ""
        killed = False
        async for event in client.stream("One two", max_new_token_count=150, **options):
            text += getattr(event, "text", "")
            if len(text) > 20 and not killed:
                killed = True
                os.kill(server.program.children()[0], signal.SIGKILL)
        assert killed
        assert text == expected


HOSTILE: list[tuple[str, Constraint]] = [
    ("not JSON", JsonSchema("{")),
    ("not a type", JsonSchema({"type": "blob"})),
    ("not followed", JsonSchema({"type": "array", "uniqueItems": True})),
    ("not reachable", JsonSchema({"$ref": "https://127.0.0.1:9/schema"})),
    ("nothing belongs to it", JsonSchema({"$ref": "#"})),
    ("deep brackets", JsonSchema('{"items":' * 200 + "{}" + "}" * 200)),
    (
        "deep references, which overflow the library's stack",
        JsonSchema(
            {
                "$defs": {f"d{n}": {"properties": {"x": {"$ref": f"#/$defs/d{n + 1}"}}} for n in range(900)}
                | {"d900": {}},
                "$ref": "#/$defs/d0",
            }
        ),
    ),
    ("too many properties", JsonSchema({"properties": {f"p{n}": {"type": "string"} for n in range(8000)}})),
    ("too long", Regex("a" * 20000)),
    ("looks ahead", Regex("(?=a)b")),
    ("refers back", Regex(r"(a)\1")),
    ("deep rules", LarkGrammar("start: r0\n" + "".join(f"r{n}: r{n + 1}\n" for n in range(3000)) + 'r3000: "a"')),
    ("no start", LarkGrammar('other: "a"')),
    ("endless", LarkGrammar("start: start")),
    ("no rule", EbnfGrammar("root ::= missing")),
    ("no root", EbnfGrammar('other ::= "a"')),
    ("no choice", Choices([])),
    ("an empty choice", Choices(["a", ""])),
]


async def test_hostile_constraints_are_refused_and_disturb_nobody(serve: Serve) -> None:
    async with serve("serve", *FLOAT32) as server, AsyncClient(server.address) as client:
        undisturbed = (await client.generate("Once", temperature=0.0, max_new_token_count=60)).text
        beside = asyncio.ensure_future(client.generate("Once", temperature=0.0, max_new_token_count=60))
        refusals = await asyncio.gather(
            # One that is not refused fails the test by its name, and not by the time it takes.
            *(client.generate("Once", constraint=constraint, max_new_token_count=4) for _, constraint in HOSTILE),
            return_exceptions=True,
        )
        for (name, _), refusal in zip(HOSTILE, refusals, strict=True):
            assert isinstance(refusal, InvalidRequest), name
            [violation] = refusal.violations
            assert violation.field.startswith("constraint."), name
            assert violation.description
        assert (await beside).text == undisturbed
        # Large and ambiguous ones that the library can follow are followed, or fail alone.
        ambiguous = [
            Regex("(a{1,900}){1,900}"),
            Regex("(a|b)*a(a|b){40}"),
        ]
        answers = await asyncio.gather(
            client.generate("Once", temperature=0.0, max_new_token_count=60),
            *(client.generate("Once", constraint=one, max_new_token_count=60) for one in ambiguous),
            return_exceptions=True,
        )
        assert answers[0].text == undisturbed
        assert all(isinstance(answer, InvalidRequest) or set(answer.text) <= {"a", "b"} for answer in answers[1:])
        with pytest.raises(InvalidRequest) as caught:
            await client.generate("Once", constraint=Regex("a+"), ignore_end_of_sequence=True)
        assert caught.value.violations[0].field == "stopping.ignore_end_of_sequence"
        with pytest.raises(InvalidRequest, match="no token is left to draw"):
            await client.generate("Once", constraint=Choices(["yes", "no"]), banned_words=["ye", "no"])
