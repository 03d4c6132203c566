"""The range of every sampling option, as headrace.v1 documents it."""

import math
from dataclasses import dataclass
from typing import TypeGuard


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The numbers that an option may be."""

    low: float
    high: float
    low_excluded: bool = False
    neutral: float
    """The value that changes nothing, so that every engine has it."""

    def __contains__(self, value: float) -> bool:
        # Comparisons with NaN are false, so it is in no range.
        return (self.low < value if self.low_excluded else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        return f"{'(' if self.low_excluded else '['}{self.low:g}, {self.high:g}]"


SAMPLING_RANGES = {
    "temperature": Range(low=0, high=2, neutral=1),
    "top_p": Range(low=0, high=1, low_excluded=True, neutral=1),
    "min_p": Range(low=0, high=1, neutral=0),
    "typical_p": Range(low=0, high=1, low_excluded=True, neutral=1),
    "repetition_penalty": Range(low=0, high=2, low_excluded=True, neutral=1),
    "frequency_penalty": Range(low=-2, high=2, neutral=0),
    "presence_penalty": Range(low=-2, high=2, neutral=0),
}
"""By the name of the option. `top_k` is not among them: its end is the vocabulary."""

LOGIT_BIAS_RANGE = Range(low=-100, high=100, neutral=0)
LENGTH_DECAY_RANGE = Range(low=1, high=10, neutral=1)
SEED_END = 2**64


def is_number(value: object) -> TypeGuard[int | float]:
    """Tells whether a value from a file is a finite number. JSON's booleans are integers in Python."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
