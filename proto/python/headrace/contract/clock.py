"""Time as a parameter, so that no pure code reads a clock."""

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> float:
        """Returns seconds on a clock that never goes back. Only differences mean anything."""
        ...


class MonotonicClock:
    """The process's monotonic clock."""

    def now(self) -> float:
        """Returns `time.monotonic()`, the clock that asyncio's loops use."""
        return time.monotonic()
