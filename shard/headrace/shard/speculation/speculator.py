"""Decides in each step which rows guess ahead and how far, and learns from what comes of it."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from headrace.contract.engine import EngineDescription
from headrace.shard.input_batch import InputBatch, StepDrafts, StepRows
from headrace.shard.speculation.draft_choice import choose_counts
from headrace.shard.speculation.drafter import Drafter
from headrace.shard.speculation.step_cost import StepCost

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Guesses:
    """What was guessed in a step, whether or not it was computed along with it."""

    places: Ints
    counts: Ints
    """[row] guesses that can be compared with what is drawn."""
    token_ids: Ints
    """[row, depth]"""
    positions: Ints
    """[row] where the first guess would be."""


class Speculator:
    """Guesses for the rows of one engine."""

    def __init__(self, description: EngineDescription, *, drafter: Drafter, cost: StepCost) -> None:
        self._drafter: Final = drafter
        self._cost: Final = cost
        self._draft_limit: Final = description.draft_token_limit
        self._block_size: Final = description.block_size
        self._token_limit: Final = description.token_limit
        self._reserved_count: Final = description.steps_in_flight - 1
        """Slots that a row leaves for the plans that were made before its answer is known."""
        self._guesses: _Guesses | None = None

    def draft(self, batch: InputBatch, step: StepRows) -> StepDrafts | None:
        """Returns the guesses that are worth computing along with a step; None if there are none."""
        self._guesses = None
        columns = batch.columns
        left = columns.token_counts[step.places] - step.starts
        eligible = (step.samples & (left == 1) & columns.drafts.may_draft[step.places]).nonzero()[0]
        if len(eligible) > 0:
            eligible = eligible[self._drafter.look(batch, step.places[eligible])]
        if len(eligible) == 0:
            return None
        places = step.places[eligible]
        token_count = int(step.chunk_counts.sum())
        counts = choose_counts(
            columns.drafts.acceptances(places, self._drafter.prior),
            self._limits(batch, places, token_count),
            token_count=token_count,
            sampling_count=int(step.samples.sum()),
            cost=self._cost,
            depth_s=self._drafter.depth_s(len(places)),
        )
        compared = np.maximum(counts, 1) if self._drafter.guesses_freely else counts
        token_ids = np.zeros((len(places), int(compared.max())), dtype=np.int64)
        guessing = compared.nonzero()[0]
        if len(guessing) > 0:
            token_ids[guessing] = self._drafter.propose(batch, places[guessing], compared[guessing])
        positions = columns.token_counts[places]
        self._guesses = _Guesses(places=places, counts=compared, token_ids=token_ids, positions=positions)
        drafting = counts.nonzero()[0]
        if len(drafting) == 0:
            return None
        return StepDrafts(indices=eligible[drafting], counts=counts[drafting], token_ids=token_ids[drafting])

    def learn(self, batch: InputBatch, step: StepRows, duration_s: float) -> None:
        """Compares the guesses for a step with what was drawn, and takes in how long computing it took."""
        if int(step.chunk_counts.sum() - step.draft_counts.sum()) == len(step.rows):
            # A step with a part of a prompt in it says little about those without.
            token_count, has_drafts = int(step.chunk_counts.sum()), bool(step.draft_counts.any())
            self._cost.observe(token_count, duration_s, has_drafts=has_drafts)
        if self._guesses is None:
            return
        guesses, columns = self._guesses, batch.columns
        depths = np.arange(guesses.token_ids.shape[1])
        known = columns.token_counts[guesses.places] - guesses.positions
        limits = np.minimum(guesses.counts, known)
        positions = np.minimum(guesses.positions[:, None] + depths, columns.token_ids.shape[1] - 1)
        drawn = columns.token_ids[guesses.places[:, None], positions]
        is_right = (drawn == guesses.token_ids) & (depths < limits[:, None])
        right = np.logical_and.accumulate(is_right, axis=1).sum(axis=1)
        columns.drafts.learn(guesses.places, np.minimum(right + 1, limits), right)

    def _limits(self, batch: InputBatch, places: Ints, token_count: int) -> Ints:
        """Returns [row] how many guesses there is room for, as the step contract has it."""
        columns = batch.columns
        known = columns.token_counts[places]
        slots = columns.block_counts[places] * self._block_size - known - self._reserved_count
        limits = np.minimum(slots, columns.token_limits[places] - 1 - known).clip(0, self._draft_limit)
        if self._token_limit:
            limits = np.minimum(limits, (self._token_limit - token_count) // len(places))
        bounded: Ints = np.maximum(limits, 0)
        return bounded
