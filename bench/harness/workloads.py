"""The jobs that every system runs: which prompts, how many new tokens, when they come, and what is read off."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.traces import (
    Trace,
    decode_rate,
    first_token_percentile_s,
    gap_percentile_s,
    overall_rate,
    prompt_rate,
)
from headrace.client.bench_load import poisson_arrivals_s

VOCABULARY_SIZE = 49152


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request of a job. It is greedy, and the end of sequence is ignored."""

    prompt: tuple[int, ...]
    new_token_count: int
    due_s: float = 0.0
    """When it comes, in seconds from the start of the job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number that is read off a job."""

    name: str
    unit: str
    read: Callable[[Sequence[Trace]], float]
    is_rate: bool = True
    """Whether more is better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A kind of job. Each round has other prompts, so that no prefix cache helps by accident."""

    name: str
    title: str
    make: Callable[[random.Random], list[Request]]
    figures: tuple[Figure, ...]
    weights: str = "bf16"

    def requests(self, round_index: int) -> list[Request]:
        """Returns the requests of a round, the same for every system."""
        return self.make(random.Random(f"{self.name} {round_index}"))


DECODE = Figure(name="decode", unit="tok/s", read=decode_rate)
OVERALL = Figure(name="overall", unit="tok/s", read=overall_rate)
PROMPTS = Figure(name="prompts", unit="prompt tok/s", read=prompt_rate)


def _milliseconds(name: str, read: Callable[[Sequence[Trace], float], float], percent: float) -> Figure:
    return Figure(name=name, unit="ms", read=lambda traces: 1e3 * read(traces, percent), is_rate=False)


LATENCIES = (
    _milliseconds("first token p50", first_token_percentile_s, 50),
    _milliseconds("first token p99", first_token_percentile_s, 99),
    _milliseconds("between tokens p50", gap_percentile_s, 50),
    _milliseconds("between tokens p99", gap_percentile_s, 99),
)


def _draw(source: random.Random, count: int) -> tuple[int, ...]:
    return tuple(source.choices(range(VOCABULARY_SIZE), k=count))


def streams(count: int, *, weights: str = "bf16") -> Workload:
    """So many requests at once: prompts of 128 tokens, 64 new ones."""

    def make(source: random.Random) -> list[Request]:
        return [Request(prompt=_draw(source, 128), new_token_count=64) for _ in range(count)]

    plural = "stream" if count == 1 else "streams"
    return Workload(
        name=f"{weights}-streams-{count}",
        title=f"{weights}, {count} {plural}",
        make=make,
        figures=(DECODE, OVERALL),
        weights=weights,
    )


def prefill(count: int, token_count: int) -> Workload:
    """Prompts alone: each gets one token."""

    def make(source: random.Random) -> list[Request]:
        return [Request(prompt=_draw(source, token_count), new_token_count=1) for _ in range(count)]

    plural = "prompt" if count == 1 else "prompts"
    return Workload(
        name=f"prefill-{count}x{token_count}",
        title=f"{count} {plural} of {token_count}",
        make=make,
        figures=(PROMPTS,),
    )


def open_loop(count: int, rate_per_s: float) -> Workload:
    """Requests that come at random, however slow the answers are."""

    def make(source: random.Random) -> list[Request]:
        arrivals_s = poisson_arrivals_s(rate_per_s, source.randrange(2**32))
        return [Request(prompt=_draw(source, 128), new_token_count=64, due_s=next(arrivals_s)) for _ in range(count)]

    return Workload(
        name=f"open-{rate_per_s:g}",
        title=f"open loop, {rate_per_s:g} requests/s, {count} requests",
        make=make,
        figures=LATENCIES,
    )


def offline(count: int) -> Workload:
    """A file of prompts of all lengths, given at once."""

    def make(source: random.Random) -> list[Request]:
        return [
            Request(prompt=_draw(source, source.randint(16, 512)), new_token_count=source.randint(16, 128))
            for _ in range(count)
        ]

    return Workload(
        name=f"offline-{count}",
        title=f"{count} requests at once, prompts of 16 to 512 tokens, 16 to 128 new ones",
        make=make,
        figures=(OVERALL,),
    )


def shared_prefix(count: int) -> Workload:
    """A conversation's start in common: the first request computes it, and the others come a little later."""

    def make(source: random.Random) -> list[Request]:
        prefix = _draw(source, 512)
        return [
            Request(prompt=prefix + _draw(source, 64), new_token_count=16, due_s=0.0 if index == 0 else 1.5)
            for index in range(count)
        ]

    def read_first(traces: Sequence[Trace]) -> float:
        return 1e3 * first_token_percentile_s(traces[1:], 50)

    def read_rate(traces: Sequence[Trace]) -> float:
        later = [
            Trace(
                prompt_token_count=trace.prompt_token_count,
                due_s=0.0,
                token_times_s=tuple(time_s - trace.due_s for time_s in trace.token_times_s),
            )
            for trace in traces[1:]
        ]
        return overall_rate(later)

    return Workload(
        name="shared-prefix",
        title=f"{count - 1} prompts that share 512 of 576 tokens with one before",
        make=make,
        figures=(
            Figure(name="first token p50", unit="ms", read=read_first, is_rate=False),
            Figure(name="overall", unit="tok/s", read=read_rate),
        ),
    )


def long_beside_short(count: int) -> Workload:
    """Streams that decode while a prompt of 2000 tokens comes."""

    def make(source: random.Random) -> list[Request]:
        short = [Request(prompt=_draw(source, 128), new_token_count=64) for _ in range(count)]
        return [*short, Request(prompt=_draw(source, 2000), new_token_count=1, due_s=0.5)]

    def read_short(percent: float) -> Callable[[Sequence[Trace]], float]:
        return lambda traces: 1e3 * gap_percentile_s(traces[:-1], percent)

    def read_long(traces: Sequence[Trace]) -> float:
        return 1e3 * traces[-1].time_to_first_token_s

    return Workload(
        name="long-beside-short",
        title=f"a prompt of 2000 beside {count} streams",
        make=make,
        figures=(
            Figure(name="short: between tokens p50", unit="ms", read=read_short(50), is_rate=False),
            Figure(name="short: longest wait", unit="ms", read=read_short(100), is_rate=False),
            Figure(name="long: first token", unit="ms", read=read_long, is_rate=False),
        ),
    )


GROUPS: dict[str, tuple[Workload, ...]] = {
    "streams": (streams(1), streams(8), streams(32)),
    "int8": (streams(1, weights="int8"),),
    "prefill": (prefill(32, 128), prefill(1, 2000)),
    "mixed": (offline(24), open_loop(24, 4.0), shared_prefix(9), long_beside_short(8)),
}
"""By the name that `--only` takes."""
