"""What a load test found: the way of each request, and the percentiles over all of them."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from headrace.client.operations import Load, StepProfile


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """One request as its caller saw it. Times are seconds from the start of the load."""

    due_s: float
    """When it should have been sent. Latencies count from here: a load generator that falls behind must not hide it."""
    delta_times_s: list[float] = field(default_factory=list[float])
    """When each delta with tokens came,"""
    delta_token_counts: list[int] = field(default_factory=list[int])
    """and how many tokens it brought."""
    prompt_token_count: int = 0
    cached_token_count: int = 0
    ended_s: float | None = None
    """When it ended well; None if it did not."""
    outcome: str = ""
    """Why it ended: a finish reason, or the reason of the error."""

    def add(self, time_s: float, token_count: int) -> None:
        """Takes in a delta."""
        self.delta_times_s.append(time_s)
        self.delta_token_counts.append(token_count)

    @property
    def gaps_s(self) -> Iterable[float]:
        """Times between deltas. Tokens that came in one delta have none between them."""
        return (later - earlier for earlier, later in zip(self.delta_times_s, self.delta_times_s[1:], strict=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Values that so many percent of the observations do not exceed; each was observed."""

    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Percentiles | None":
        """Returns the percentiles by nearest rank, or None of nothing."""
        ordered = sorted(values)
        if not ordered:
            return None
        return cls(
            p50=nearest_rank(ordered, 50), p90=nearest_rank(ordered, 90), p99=nearest_rank(ordered, 99), max=ordered[-1]
        )


def nearest_rank(ordered: Sequence[float], percent: float) -> float:
    """Returns the least value that at least `percent` of the ascending values do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A load test in numbers."""

    request_count: int
    """Requests that were sent."""
    completed_count: int
    """Those that ended well."""
    window_s: float
    """The duration of the load if one was set, else the time until the last answer. Rates are over this time."""
    prompt_tokens_per_s: float
    """Prompt tokens of requests whose first token came within the window, cached ones included."""
    generated_tokens_per_s: float
    """Generated tokens that came within the window."""
    time_to_first_token_s: Percentiles | None
    """From when the request was due."""
    inter_token_s: Percentiles | None
    """Between deltas of a request; see `tokens_per_delta`."""
    end_to_end_s: Percentiles | None
    """From when the request was due, of those that ended well."""
    tokens_per_delta: float | None
    """More than 1 where the reader was slower than the model."""
    prompt_token_count: int
    cached_token_count: int
    """Prompt tokens found in the prefix cache."""
    mean_batch: float | None
    """Rows per step as the router counted them, those of other clients included; None if it has no steps to count."""
    profile: StepProfile | None
    """What the steps took, those of other clients included; None if the server has none, or does not tell."""
    outcomes: dict[str, int]
    """How many requests ended for each reason, most frequent first."""


def summarize(
    records: Sequence[RequestRecord],
    *,
    duration_s: float | None,
    mean_batch: float | None,
    profile: StepProfile | None = None,
) -> Summary:
    """Returns the numbers of a load test."""
    completed = [record for record in records if record.ended_s is not None]
    begun = [record for record in records if record.delta_times_s]
    window_s = duration_s or max((record.delta_times_s[-1] for record in begun), default=0.0)
    in_window = [record for record in begun if record.delta_times_s[0] <= window_s]
    prompt_token_count = sum(record.prompt_token_count for record in in_window)
    generated_count = sum(_count_until(record, window_s) for record in in_window)
    delta_count = sum(len(record.delta_times_s) for record in begun)
    token_count = sum(sum(record.delta_token_counts) for record in begun)
    return Summary(
        request_count=len(records),
        completed_count=len(completed),
        window_s=window_s,
        prompt_tokens_per_s=prompt_token_count / window_s if window_s else 0.0,
        generated_tokens_per_s=generated_count / window_s if window_s else 0.0,
        time_to_first_token_s=Percentiles.of(record.delta_times_s[0] - record.due_s for record in begun),
        inter_token_s=Percentiles.of(gap_s for record in begun for gap_s in record.gaps_s),
        end_to_end_s=Percentiles.of(
            record.ended_s - record.due_s for record in completed if record.ended_s is not None
        ),
        tokens_per_delta=token_count / delta_count if delta_count else None,
        prompt_token_count=sum(record.prompt_token_count for record in records),
        cached_token_count=sum(record.cached_token_count for record in records),
        mean_batch=mean_batch,
        profile=profile,
        outcomes=dict(Counter(record.outcome for record in records).most_common()),
    )


def mean_batch(before: Load, after: Load) -> float | None:
    """Returns the rows per step between two reports of a router; None if there was no step or a shard came anew."""
    rows, steps = (
        sum(getattr(replica.load, name) for replica in after.replicas)
        - sum(getattr(replica.load, name) for replica in before.replicas)
        for name in ("row_count", "step_count")
    )
    return rows / steps if steps > 0 and rows >= 0 else None


def _count_until(record: RequestRecord, end_s: float) -> int:
    pairs = zip(record.delta_times_s, record.delta_token_counts, strict=True)
    return sum(token_count for time_s, token_count in pairs if time_s <= end_s)
