"""The columns of the resident batch that tell what drafting is worth for a row."""

import numpy as np
from numpy.typing import NDArray

from headrace.shard.growing_columns import GrowingColumns

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_DECAY = 0.85
"""What a trial leaves of the weight of those before it: about the last seven count."""
_FORGETTING = 0.995
"""The same for a step without a trial: a row that stopped drafting is tried again after some hundred tokens."""
_PRIOR_WEIGHT = 1.0
"""Trials that the assumption about a new row is worth."""
_SURE = 0.99
"""Most that a probability is taken to be, so that a longer draft is never thought to be as likely as a shorter one."""


class DraftColumns(GrowingColumns):
    """What became of the guesses for each row, the newest weighing most.

    The first guess of a draft and those after it are counted apart: a guess that
    follows one that was right is more likely right itself.
    """

    def __init__(self, place_count: int) -> None:
        self.may_draft = np.zeros(place_count, dtype=np.bool_)
        """[place]"""
        self.indexed_counts = np.zeros(place_count, dtype=np.int64)
        """[place] tokens that whoever drafts has looked at."""
        self._trials = np.zeros((place_count, 2), dtype=np.float64)
        """[place, first or later] guesses that were compared with what was drawn."""
        self._hits = np.zeros((place_count, 2), dtype=np.float64)
        """[place, first or later] those that were right."""

    def fill(self, place: int, *, may_draft: bool) -> None:
        """Starts a row of which nothing is known."""
        self.may_draft[place] = may_draft
        self.indexed_counts[place] = 0
        self._trials[place] = 0.0
        self._hits[place] = 0.0

    def acceptances(self, places: Ints, prior: float) -> Floats:
        """Returns [row, first or later] the probability that a guess is right, `prior` for an unknown row."""
        return np.minimum((self._hits[places] + prior * _PRIOR_WEIGHT) / (self._trials[places] + _PRIOR_WEIGHT), _SURE)

    def learn(self, places: Ints, compared: Ints, right: Ints, *, step_count: int = 1) -> None:
        """Takes in how many guesses of each row were compared with what was drawn, and how many were right.

        `step_count` is the number of steps that this stands for, of which all but one had no guesses.

        A draft is compared up to its first wrong guess, so all compared ones but the last are right.
        """
        firsts = np.minimum(compared, 1)
        compared_parts = np.stack((firsts, compared - firsts), axis=1)
        right_firsts = np.minimum(right, 1)
        right_parts = np.stack((right_firsts, right - right_firsts), axis=1)
        decay = np.where(compared_parts > 0, _DECAY**compared_parts, _FORGETTING**step_count)
        # The sum of a run's own weights, each decayed by those after it.
        gain = (1 - _DECAY**compared_parts) / (1 - _DECAY)
        is_wrong = compared_parts > right_parts
        self._trials[places] = self._trials[places] * decay + gain
        self._hits[places] = self._hits[places] * decay + gain - is_wrong
