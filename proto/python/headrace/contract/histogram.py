"""A distribution that one part of a process counts and another one exports."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from math import inf
from typing import Final

STEP_BOUNDS_S: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
"""Buckets for a part of a step, which router and shard both time."""


class Histogram:
    """Counts values in buckets. Its writer and its readers are on one thread: it has no lock."""

    __slots__ = ("_counts", "bounds", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """Starts empty, with a bucket for each upper bound, which belongs to it, and one for what is above the last.

        The bounds ascend.
        """
        self.bounds = bounds
        self.sum = 0.0
        """Of all values."""
        self._counts = [0] * (len(bounds) + 1)

    @property
    def count(self) -> int:
        """Values counted."""
        return sum(self._counts)

    def observe(self, value: float, count: int = 1) -> None:
        """Counts a value, as often as it came."""
        self._counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Yields each upper bound, infinity last, and how many values do not exceed it."""
        total = 0
        for bound, count in zip((*self.bounds, inf), self._counts, strict=True):
            total += count
            yield bound, total

    @classmethod
    def total(cls, bounds: tuple[float, ...], parts: Iterable["Histogram"]) -> "Histogram":
        """Returns the distribution of all values of some histograms, which have these bounds."""
        total = cls(bounds)
        for part in parts:
            assert part.bounds == bounds
            total.sum += part.sum
            total._counts = [mine + other for mine, other in zip(total._counts, part._counts, strict=True)]
        return total

    def copy(self) -> "Histogram":
        """Returns the distribution as it is, for another thread."""
        return Histogram.total(self.bounds, (self,))
