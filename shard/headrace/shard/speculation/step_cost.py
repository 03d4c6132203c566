"""What a step takes by the number of its tokens: measured once, and corrected by the steps that run."""

import math
from bisect import bisect_left
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from headrace.contract.clock import Clock

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_TOKEN_COUNTS: Final = (1, 2, 4, 8, 16, 32, 64)
"""At these it is measured; between them it is taken to be straight, as beyond the last."""
_ROUND_LIMIT: Final = 5
_TIME_LIMIT_S: Final = 1.0
"""No further round of measurements begins after it."""
_FIRST_STRIDE: Final = 0.5
_LAST_STRIDE: Final = 0.03
"""By how much the logarithm of a correction moves with a step that is observed, at first and after many."""
_SHARED: Final = 0.75
"""How much of that the other correction moves along: what slows one kind of step mostly slows both."""
_RELAXATION: Final = 0.01
"""By how much a step without drafts draws the correction of those with drafts towards its own."""


class StepCost:
    """The time of a step of n tokens.

    What it was measured to be is corrected by two factors, one for steps without
    drafts and one for those with drafts, since attention grows differently. A
    factor moves by a fixed stride towards what is observed, so that it tends to
    the median, and steps that something else held up count for no more than others.
    """

    def __init__(self, token_counts: tuple[int, ...], times_s: tuple[float, ...]) -> None:
        """Takes the time of a step at some numbers of tokens, ascending; at least two."""
        # Fewer tokens take no more, and noise only ever adds.
        self._times_s: Floats = np.minimum.accumulate(np.array(times_s, dtype=np.float64)[::-1])[::-1]
        self._token_counts = np.array(token_counts, dtype=np.float64)
        ends, times = self._token_counts[-2:], self._times_s[-2:]
        self._slope_s = float((times[1] - times[0]) / (ends[1] - ends[0]))
        self._known_counts: Final = token_counts
        self._known_times_s: Final[tuple[float, ...]] = tuple(self._times_s.tolist())
        self._logs = {False: 0.0, True: 0.0}
        """Logarithms of the factors, by whether a step has drafts."""
        self._observed_count = 0

    def seconds(self, token_counts: Ints, *, has_drafts: bool) -> Floats:
        """Returns the time of steps of so many tokens."""
        return self._measured(token_counts) * math.exp(self._logs[has_drafts])

    def seconds_of(self, token_count: int, *, has_drafts: bool) -> float:
        """Returns the time of one step. Each step asks, so it does without arrays: they would take longer."""
        counts, times_s = self._known_counts, self._known_times_s
        place = bisect_left(counts, token_count)
        if place == len(counts):
            measured_s = times_s[-1] + (token_count - counts[-1]) * self._slope_s
        elif place == 0:
            measured_s = times_s[0]
        else:
            share = (token_count - counts[place - 1]) / (counts[place] - counts[place - 1])
            measured_s = times_s[place - 1] + share * (times_s[place] - times_s[place - 1])
        return measured_s * math.exp(self._logs[has_drafts])

    def observe(self, token_count: int, duration_s: float, *, has_drafts: bool) -> None:
        """Takes in what a step took."""
        stride = max(_FIRST_STRIDE / (1 + self._observed_count), _LAST_STRIDE)
        self._observed_count += 1
        if duration_s < self.seconds_of(token_count, has_drafts=has_drafts):
            stride = -stride
        self._logs[has_drafts] += stride
        self._logs[not has_drafts] += _SHARED * stride
        if not has_drafts:
            self._logs[True] += _RELAXATION * (self._logs[False] - self._logs[True])

    def _measured(self, token_counts: Ints) -> Floats:
        beyond = np.maximum(token_counts - self._token_counts[-1], 0)
        return np.asarray(np.interp(token_counts, self._token_counts, self._times_s) + beyond * self._slope_s)


def measure_steps(run: Callable[[int], None], clock: Clock, *, token_limit: int) -> StepCost:
    """Measures what steps take: the least of several rounds, each over all numbers of tokens.

    Args:
        run: Computes a step of so many tokens.
        clock: Tells how long it took.
        token_limit: Most tokens that fit; >= 2.
    """
    token_counts = tuple(token_count for token_count in _TOKEN_COUNTS if token_count <= token_limit)
    least_s = [math.inf] * len(token_counts)
    for token_count in token_counts:
        run(token_count)
    began_s = clock.now()
    for round_number in range(_ROUND_LIMIT):
        if round_number > 0 and clock.now() - began_s > _TIME_LIMIT_S:
            break
        for index, token_count in enumerate(token_counts):
            started_s = clock.now()
            run(token_count)
            least_s[index] = min(least_s[index], clock.now() - started_s)
    return StepCost(token_counts, tuple(least_s))
