"""How many calls of each method a gRPC server has answered, and how long they took."""

from collections import Counter, defaultdict
from typing import Final

from headrace.contract.histogram import Histogram

CALL_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Buckets for the duration of a call."""


class CallMeter:
    """Counts calls when they end."""

    def __init__(self) -> None:
        self.ended: Final = Counter[tuple[str, str]]()
        """Calls by method and the name of their status code."""
        self.duration_s: Final = defaultdict[str, Histogram](lambda: Histogram(CALL_BOUNDS_S))
        """By method; calls that only watch are left out, since they last as long as their caller likes."""

    def note_end(self, method: str, code: str, duration_s: float, *, is_observer: bool) -> None:
        """Counts a call, of a method that the server has."""
        name = method.removeprefix("/")
        self.ended[name, code] += 1
        if not is_observer:
            self.duration_s[name].observe(duration_s)
