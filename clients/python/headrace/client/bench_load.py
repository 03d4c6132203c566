"""What a load test sends: prompts drawn from a seed, and when each request is due."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, repeat

from headrace.client.operations import ModelLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The requests of a load test, all alike but for the ids in their prompts."""

    prompt_token_count: int = 128
    """Length of each prompt, the shared prefix included."""
    new_token_count: int = 64
    """Tokens that each request generates; the model's end of sequence is ignored."""
    shared_prefix_token_count: int = 0
    """First tokens that all prompts have in common."""
    seed: int = 0
    """Decides the prompts and the arrivals."""

    def __post_init__(self) -> None:
        """Checks the counts.

        Raises:
            ValueError: a count is out of range.
        """
        if self.prompt_token_count < 1 or self.new_token_count < 1:
            raise ValueError("prompts and answers have at least one token each")
        if not 0 <= self.shared_prefix_token_count <= self.prompt_token_count:
            raise ValueError(
                f"the shared prefix must be between 0 and the prompt's {self.prompt_token_count} tokens, "
                f"not {self.shared_prefix_token_count}"
            )

    def prompts(self, vocabulary_size: int) -> Iterator[tuple[int, ...]]:
        """Iterates over prompts without end; the same ones for the same seed and vocabulary."""
        source = random.Random(f"prompts {self.seed}")  # noqa: S311  # repeatable on purpose
        prefix = _draw(source, vocabulary_size, self.shared_prefix_token_count)
        while True:
            yield prefix + _draw(source, vocabulary_size, self.prompt_token_count - len(prefix))

    def check(self, limits: ModelLimits) -> None:
        """Refuses what the model would refuse, before a thousand requests do.

        Raises:
            ValueError: the requests are too long for the model.
        """
        if self.prompt_token_count > limits.prompt_token_count:
            raise ValueError(f"the model takes prompts of up to {limits.prompt_token_count} tokens")
        if self.prompt_token_count + self.new_token_count > limits.context_token_count:
            raise ValueError(f"the model takes up to {limits.context_token_count} tokens, prompt and answer together")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How requests follow each other, and when they stop.

    In a closed loop each of `stream_count` streams sends its next request when the
    last one has ended: the load adapts to the server. In an open loop requests come
    at random, `rate_per_s` on average, however slow the server is.
    """

    stream_count: int | None = None
    rate_per_s: float | None = None
    request_count: int | None = None
    """Ends the load after so many requests."""
    duration_s: float | None = None
    """Ends the load after so long; requests under way are still awaited."""

    def __post_init__(self) -> None:
        """Checks that exactly one kind of loop and an end are given.

        Raises:
            ValueError: they are not, or a value is not positive.
        """
        values = (self.stream_count, self.rate_per_s, self.request_count, self.duration_s)
        if any(value is not None and value <= 0 for value in values):
            raise ValueError("streams, rate, requests and duration must be positive")
        if (self.stream_count is None) == (self.rate_per_s is None):
            raise ValueError("either a number of streams or a rate must be given")
        if self.request_count is None and self.duration_s is None:
            raise ValueError("a number of requests or a duration must be given")

    @property
    def title(self) -> str:
        """The loop in words."""
        if self.rate_per_s is not None:
            return f"{self.rate_per_s:g} requests/s"
        return "1 stream" if self.stream_count == 1 else f"{self.stream_count} streams"

    def due_times_s(self, seed: int) -> Iterator[float]:
        """Iterates over when requests are due, in seconds from the start; the same for the same seed.

        In a closed loop all are due at once, and the streams decide.
        """
        times_s = repeat(0.0) if self.rate_per_s is None else poisson_arrivals_s(self.rate_per_s, seed)
        for time_s in islice(times_s, self.request_count):
            if self.duration_s is not None and time_s >= self.duration_s:
                return
            yield time_s


def poisson_arrivals_s(rate_per_s: float, seed: int) -> Iterator[float]:
    """Iterates without end over the arrival times of a Poisson process: independent, exponential gaps."""
    source = random.Random(f"arrivals {seed}")  # noqa: S311  # repeatable on purpose
    time_s = 0.0
    while True:
        time_s += source.expovariate(rate_per_s)
        yield time_s


def _draw(source: random.Random, vocabulary_size: int, count: int) -> tuple[int, ...]:
    return tuple(source.choices(range(vocabulary_size), k=count))
