"""Where the time of a replica's steps goes, as running sums."""

from dataclasses import dataclass, fields
from typing import Self

from headrace.contract.step import StepTimings


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

    def after(self, past: Self) -> Self:
        """Returns these sums added to those of a predecessor."""
        return type(self)(
            **{field.name: getattr(self, field.name) + getattr(past, field.name) for field in fields(self)}
        )


@dataclass(slots=True, kw_only=True)
class StepProfiler:
    """Adds the steps of one replica up while they run. It is told the time."""

    _step_count: int = 0
    _queued_s: float = 0.0
    _prepare_s: float = 0.0
    _forward_s: float = 0.0
    _sample_s: float = 0.0
    _round_trip_s: float = 0.0
    _in_flight_s: float = 0.0
    _counted_until_s: float = 0.0
    """The part of the time in flight before this moment is in the sum."""

    def add(self, timings: StepTimings, *, sent_s: float, answered_s: float) -> None:
        """Takes in the oldest unanswered step, now that it is answered."""
        self._step_count += 1
        self._queued_s += timings.queued_s
        self._prepare_s += timings.prepare_s
        self._forward_s += timings.forward_s
        self._sample_s += timings.sample_s
        self._round_trip_s += answered_s - sent_s
        self._in_flight_s += answered_s - max(sent_s, self._counted_until_s)
        self._counted_until_s = answered_s

    def snapshot(self) -> StepProfile:
        """Returns the sums as they are."""
        return StepProfile(
            step_count=self._step_count,
            queued_s=self._queued_s,
            prepare_s=self._prepare_s,
            forward_s=self._forward_s,
            sample_s=self._sample_s,
            round_trip_s=self._round_trip_s,
            in_flight_s=self._in_flight_s,
        )
