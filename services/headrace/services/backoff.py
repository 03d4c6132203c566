"""Waiting times that double with each failure."""


class Backoff:
    """Counts failures in a row."""

    __slots__ = ("_first_s", "_limit_s", "_next_s")

    def __init__(self, *, first_s: float, limit_s: float) -> None:
        self._first_s = first_s
        self._limit_s = limit_s
        self._next_s = first_s

    def fail(self) -> float:
        """Returns how many seconds to wait after one more failure."""
        wait_s = self._next_s
        self._next_s = min(wait_s * 2, self._limit_s)
        return wait_s

    def reset(self) -> None:
        """Forgets the failures."""
        self._next_s = self._first_s
