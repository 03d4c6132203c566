"""What is read off the times at which tokens came: the same figures for every system."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from headrace.client.bench_summary import nearest_rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One request as its caller saw it, in seconds from the start of the job."""

    prompt_token_count: int
    due_s: float
    token_times_s: tuple[float, ...]
    """When each token came; at least one."""

    @property
    def time_to_first_token_s(self) -> float:
        """From when the request was due."""
        return self.token_times_s[0] - self.due_s

    @property
    def gaps_s(self) -> Iterable[float]:
        """Times between tokens; none between tokens that came together."""
        return (later - earlier for earlier, later in pairwise(self.token_times_s))


def decode_rate(traces: Sequence[Trace]) -> float:
    """Returns the tokens per second of all requests together while every one of them decodes.

    That is from when the last one has its first token until the first one has its last.

    Raises:
        ValueError: there is no such time.
    """
    begin_s = max(trace.token_times_s[0] for trace in traces)
    end_s = min(trace.token_times_s[-1] for trace in traces)
    if end_s <= begin_s:
        raise ValueError("the first request ended before the last one began to decode")
    token_count = sum(begin_s < time_s <= end_s for trace in traces for time_s in trace.token_times_s)
    return token_count / (end_s - begin_s)


def overall_rate(traces: Sequence[Trace]) -> float:
    """Returns generated tokens per second from the start of the job to its last token, prompts and queues included."""
    token_count = sum(len(trace.token_times_s) for trace in traces)
    return token_count / max(trace.token_times_s[-1] for trace in traces)


def prompt_rate(traces: Sequence[Trace]) -> float:
    """Returns prompt tokens per second from the start of the job until every request has its first token."""
    token_count = sum(trace.prompt_token_count for trace in traces)
    return token_count / max(trace.token_times_s[0] for trace in traces)


def first_token_percentile_s(traces: Sequence[Trace], percent: float) -> float:
    """Returns the time to the first token that so many percent of the requests do not exceed."""
    return nearest_rank(sorted(trace.time_to_first_token_s for trace in traces), percent)


def gap_percentile_s(traces: Sequence[Trace], percent: float) -> float:
    """Returns the time between two tokens of a request that so many percent of them do not exceed."""
    return nearest_rank(sorted(gap_s for trace in traces for gap_s in trace.gaps_s), percent)
