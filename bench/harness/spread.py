"""Medians with their spread, and ratios of what was measured in the same round."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A median and how far the rounds lie apart."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Returns the spread of at least one value."""
        return cls(median=statistics.median(values), least=min(values), most=max(values))


def paired_ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Returns the spread of the ratios round by round.

    Both were measured within seconds of each other in each round, so a machine
    that is slower in one round than in another changes both and not the ratio.
    """
    return Spread.of([own / other for own, other in zip(ours, theirs, strict=True)])
