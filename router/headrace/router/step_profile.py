"""How large a replica's steps are, where their time goes, and how far apart the tokens come."""

from dataclasses import dataclass
from typing import Final

from headrace.contract.histogram import STEP_BOUNDS_S, Histogram
from headrace.contract.step import StepTimings
from headrace.router.sequence import Sequence

WAIT_BOUNDS_S: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0,
)  # fmt: skip
"""Buckets for what a caller waits for before there is a token."""
GAP_BOUNDS_S: Final = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
"""Buckets for the time between two tokens: dense where readers feel a difference."""
ROW_BOUNDS: Final = tuple(2.0**power for power in range(11))
"""Buckets for the rows of a step: 1, 2, 4, ... 1024."""
TOKEN_BOUNDS: Final = tuple(2.0**power for power in range(15))
"""Buckets for the tokens of a step: 1, 2, 4, ... 16384."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProfile:
    """Sums over all answered steps, in seconds.

    While steps follow each other without a break, `in_flight_s` is the time that
    passed: what the engine did not spend on preparing, computing and sampling of
    it, it waited for the next plan.
    """

    step_count: int = 0
    """Steps that were answered."""
    queued_s: float = 0.0
    """In the shard, behind the step before."""
    prepare_s: float = 0.0
    """From the plan to the model's inputs."""
    forward_s: float = 0.0
    """Running the model."""
    sample_s: float = 0.0
    """From logits to tokens."""
    round_trip_s: float = 0.0
    """From the plan's departure to the answer's arrival. Steps overlap, so this may be more time than passed."""
    in_flight_s: float = 0.0
    """During which one or more steps were unanswered."""


class StepProfiler:
    """Counts the steps of one replica while they run, from its first engine to its last. It is told the time."""

    def __init__(self) -> None:
        self.queued_s: Final = Histogram(STEP_BOUNDS_S)
        self.prepare_s: Final = Histogram(STEP_BOUNDS_S)
        self.forward_s: Final = Histogram(STEP_BOUNDS_S)
        self.sample_s: Final = Histogram(STEP_BOUNDS_S)
        self.round_trip_s: Final = Histogram(STEP_BOUNDS_S)
        """All these as in `StepProfile`, a value for each answered step."""
        self.row_count: Final = Histogram(ROW_BOUNDS)
        """Rows that compute, of each planned step."""
        self.token_count: Final = Histogram(TOKEN_BOUNDS)
        """Tokens to compute, of each planned step."""
        self.queue_wait_s: Final = Histogram(WAIT_BOUNDS_S)
        """Time from the moment that a sequence could run to the plan of its first step."""
        self.first_token_s: Final = Histogram(WAIT_BOUNDS_S)
        """Time from the arrival of a request to the first token of a completion, tokenizing and queueing included."""
        self.token_gap_s: Final = Histogram(GAP_BOUNDS_S)
        """Time from one token of a completion to the next, as the router got them."""
        self._in_flight_s = 0.0
        self._counted_until_s = 0.0
        """The part of the time in flight before this moment is in the sum."""

    def add(self, timings: StepTimings, *, sent_s: float, answered_s: float) -> None:
        """Takes in the oldest unanswered step, now that it is answered."""
        self.queued_s.observe(timings.queued_s)
        self.prepare_s.observe(timings.prepare_s)
        self.forward_s.observe(timings.forward_s)
        self.sample_s.observe(timings.sample_s)
        self.round_trip_s.observe(answered_s - sent_s)
        self._in_flight_s += answered_s - max(sent_s, self._counted_until_s)
        self._counted_until_s = answered_s

    def add_start(self, sequence: Sequence, now_s: float) -> None:
        """Takes in the first step of a sequence, now that it is planned."""
        if sequence.received_s is not None:
            self.queue_wait_s.observe(now_s - sequence.arrival_s)

    def add_tokens(self, sequence: Sequence, token_count: int, now_s: float) -> None:
        """Takes in tokens of a sequence that came at once, before `last_token_s` says so: each took its share."""
        if sequence.last_token_s is not None:
            self.token_gap_s.observe((now_s - sequence.last_token_s) / token_count, token_count)
        elif sequence.received_s is not None:
            self.first_token_s.observe(now_s - sequence.received_s)

    def snapshot(self) -> StepProfile:
        """Returns the sums as they are."""
        return StepProfile(
            step_count=self.round_trip_s.count,
            queued_s=self.queued_s.sum,
            prepare_s=self.prepare_s.sum,
            forward_s=self.forward_s.sum,
            sample_s=self.sample_s.sum,
            round_trip_s=self.round_trip_s.sum,
            in_flight_s=self._in_flight_s,
        )
