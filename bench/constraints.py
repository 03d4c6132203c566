"""Measures what constraints cost where every row of a full batch has one, on one server, in turns."""

import argparse
import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from harness.one_server import create_parser, measure_on_server
from harness.spread import Spread, paired_ratios

from headrace.client.aio import AsyncClient
from headrace.client.constraint import Constraint, JsonSchema, LarkGrammar, Regex
from headrace.client.options import GenerateOptions


def people(index: int = 0) -> JsonSchema:
    """Returns a list that is longer than any run here; each index names a property otherwise."""
    person = {
        "type": "object",
        "properties": {f"name_{index}": {"type": "string"}, "age": {"type": "integer"}},
        "required": [f"name_{index}", "age"],
        "additionalProperties": False,
    }
    return JsonSchema({"type": "array", "items": person, "minItems": 100})


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What the completions are held to."""

    name: str
    constraint: Callable[[int], Constraint]
    """Of each row, by its index."""


CASES = (
    Case(name="one JSON schema", constraint=lambda _: people()),
    Case(name="a JSON schema for each row", constraint=people),
    Case(
        name="any JSON objects",
        constraint=lambda _: JsonSchema({"type": "array", "items": {"type": "object"}, "minItems": 100}),
    ),
    Case(name="regular expression, open", constraint=lambda _: Regex("[A-Za-z ,.]{400,}")),
    Case(
        name="regular expression, e-mail addresses",
        constraint=lambda _: Regex(r"([a-z0-9.]{1,20}@[a-z0-9]{1,20}\.(com|org|net)\n){40,}"),
    ),
    Case(
        name="Lark grammar",
        constraint=lambda _: LarkGrammar(
            'start: sentence+\nsentence: WORD (" " WORD)* (", " WORD (" " WORD)*)* ". "\nWORD: /[A-Za-z]+/'
        ),
    ),
)


async def measure_rate(
    client: AsyncClient, constraint: Callable[[int], Constraint] | None, *, rows: int, tokens: int
) -> float:
    """Returns the tokens per second from when all rows have their first token until one has its last."""
    times_s: list[list[float]] = [[] for _ in range(rows)]
    salt = secrets.token_hex(8)

    async def follow(index: int) -> None:
        options = GenerateOptions(temperature=0.8, seed=index, max_new_token_count=tokens, cache_salt=salt)
        if constraint is None:
            options["ignore_end_of_sequence"] = True
        else:
            options["constraint"] = constraint(index)
            options["min_new_token_count"] = tokens
        async with client.stream(f"Story number {index}: once upon", **options) as stream:
            async for delta in stream:
                times_s[index].extend([time.perf_counter()] * len(delta.token_ids))

    async with asyncio.TaskGroup() as tasks:
        for index in range(rows):
            tasks.create_task(follow(index))
    # A shorter run has more of its steps with fewer rows, and would flatter whatever ends early.
    lengths = {len(times) for times in times_s}
    assert lengths == {tokens}, f"completions of {lengths} tokens"
    begin_s, end_s = max(times[0] for times in times_s), min(times[-1] for times in times_s)
    return sum(begin_s < moment <= end_s for times in times_s for moment in times) / (end_s - begin_s)


async def measure(client: AsyncClient, arguments: argparse.Namespace) -> None:
    """Prints a line for each case."""
    print("| constraint of every row | tokens/s without | with | ratio |\n|---|---|---|---|")
    for case in CASES:
        if arguments.only not in case.name:
            continue
        rates: dict[bool, list[float]] = {False: [], True: []}
        for number in range(arguments.rounds + 1):
            for is_held in (False, True) if number % 2 else (True, False):
                rate = await measure_rate(
                    client, case.constraint if is_held else None, rows=arguments.rows, tokens=arguments.tokens
                )
                if number > 0:  # the first round warms up, and has the grammars tried and compiled
                    rates[is_held].append(rate)
        free, held = Spread.of(rates[False]), Spread.of(rates[True])
        ratio = paired_ratios(rates[True], rates[False])
        print(
            f"| {case.name} | {free.median:.0f} | {held.median:.0f}"
            f" | {ratio.median:.2f} ({ratio.least:.2f} to {ratio.most:.2f}) |",
            flush=True,
        )


def main() -> None:
    parser = create_parser(__doc__, token_count=48)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--only", default="", help="measure the kinds whose name has this in it")
    asyncio.run(measure_on_server(measure, parser.parse_args()))


if __name__ == "__main__":
    main()
