"""Decides in each step which rows guess ahead and how far, and learns from what comes of it."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from headrace.contract.clock import Clock
from headrace.contract.engine import EngineDescription
from headrace.shard.input_batch import InputBatch
from headrace.shard.speculation.draft_choice import choose_counts
from headrace.shard.speculation.drafter import Drafter
from headrace.shard.speculation.guess_account import GuessAccount
from headrace.shard.speculation.step_cost import StepCost
from headrace.shard.step_rows import StepDrafts, StepRows

Ints = NDArray[np.int64]

_REST_STEP_COUNT: Final = 8
"""Steps that pass before rows that were worth no guess are looked at again, where looking costs something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Guesses:
    """What was guessed in a step, whether or not it was computed along with it."""

    places: Ints
    counts: Ints
    """[row] guesses that can be compared with what is drawn."""
    computed_counts: Ints
    """[row] those of them that are computed along with the step."""
    token_ids: Ints
    """[row, depth]"""
    positions: Ints
    """[row] where the first guess would be."""


class Speculator:
    """Guesses for the rows of one engine."""

    def __init__(self, description: EngineDescription, *, drafter: Drafter, cost: StepCost, clock: Clock) -> None:
        self._drafter: Final = drafter
        self._cost: Final = cost
        self._clock: Final = clock
        self._account: Final = GuessAccount(cost.seconds_of(1, has_drafts=False))
        self._draft_limit: Final = description.draft_token_limit
        self._block_size: Final = description.block_size
        self._token_limit: Final = description.token_limit
        self._reserved_count: Final = description.steps_in_flight - 1
        """Slots that a row leaves for the plans that were made before its answer is known."""
        self._guesses: _Guesses | None = None
        self._guessing_s = 0.0
        """What the guesses for a step took."""
        self._draft_count = 0
        """Guesses that are computed along with the step."""
        self._rest_step_count = 0
        """Steps to come without a look at any row."""
        self._is_idle = True
        """Whether the step has no row to guess for, wanted or not."""

    def draft(self, batch: InputBatch, step: StepRows) -> StepDrafts | None:
        """Returns the guesses that are worth computing along with a step; None if there are none."""
        self._guesses = None
        self._guessing_s = 0.0
        self._draft_count = 0
        columns = batch.columns
        # A chunk of one token that reaches the last one: the row is in the midst of decoding.
        eligible = (step.samples & (step.chunk_counts == 1) & columns.drafts.may_draft[step.places]).nonzero()[0]
        self._is_idle = len(eligible) == 0
        if self._is_idle or self._rests():
            return None
        eligible = eligible[self._drafter.look(batch, step.places[eligible])]
        if len(eligible) == 0:
            return None
        places = step.places[eligible]
        token_count = int(step.chunk_counts.sum())
        counts = np.zeros(len(places), dtype=np.int64)
        if self._account.may_guess:
            counts = choose_counts(
                columns.drafts.acceptances(places, self._drafter.prior),
                self._limits(batch, places, token_count),
                token_count=token_count,
                sampling_count=int(step.samples.sum()),
                cost=self._cost,
                depth_s=self._drafter.depth_s(len(places)),
            )
        if not counts.any() and not self._drafter.guesses_freely:
            self._rest_step_count = _REST_STEP_COUNT
            columns.drafts.learn(places, counts, counts, step_count=1 + _REST_STEP_COUNT)
            return None
        began_s = self._clock.now()
        counts = self._prepare(batch, places, counts)
        compared = np.maximum(counts, 1) if self._drafter.guesses_freely else counts
        token_ids = np.zeros((len(places), int(compared.max())), dtype=np.int64)
        guessing = compared.nonzero()[0]
        if len(guessing) > 0:
            token_ids[guessing] = self._drafter.propose(batch, places[guessing], compared[guessing])
        self._guessing_s = self._clock.now() - began_s
        positions = columns.token_counts[places]
        self._guesses = _Guesses(
            places=places, counts=compared, computed_counts=counts, token_ids=token_ids, positions=positions
        )
        drafting = counts.nonzero()[0]
        if len(drafting) == 0:
            return None
        self._draft_count = int(counts.sum())
        return StepDrafts(indices=eligible[drafting], counts=counts[drafting], token_ids=token_ids[drafting])

    def learn(self, batch: InputBatch, step: StepRows, duration_s: float) -> None:
        """Compares the guesses for a step with what was drawn, and takes in how long computing it took."""
        token_count, draft_count = int(step.chunk_counts.sum()), self._draft_count
        plain_count = token_count - draft_count
        if plain_count == len(step.rows):
            # A step with a part of a prompt in it says little about those without.
            self._cost.observe(token_count, duration_s, has_drafts=draft_count > 0)
        if self._is_idle:
            return
        accepted_count = 0 if self._guesses is None else self._compare(batch, self._guesses)
        plain_s = self._cost.seconds_of(plain_count, has_drafts=False)
        added_s = self._cost.seconds_of(token_count, has_drafts=True) - plain_s if draft_count else 0.0
        self._account.settle(
            plain_s=plain_s,
            spent_s=self._guessing_s + added_s,
            saved_s=plain_s * accepted_count / max(int(step.samples.sum()), 1),
        )

    def _rests(self) -> bool:
        """Whether this step is left alone. With nothing to spend, only what costs nothing is done."""
        if self._drafter.guesses_freely:
            return False
        if self._rest_step_count > 0:
            self._rest_step_count -= 1
            return True
        return not self._account.may_guess

    def _prepare(self, batch: InputBatch, places: Ints, counts: Ints) -> Ints:
        """Returns [row] how many tokens to guess, none where whoever guesses is not ready."""
        wanted = counts.nonzero()[0]
        if len(wanted) > 0:
            counts[wanted] *= self._drafter.prepare(batch, places[wanted])
        return counts

    def _compare(self, batch: InputBatch, guesses: _Guesses) -> int:
        """Learns what became of guesses; returns how many of those that were computed were right."""
        columns = batch.columns
        depths = np.arange(guesses.token_ids.shape[1])
        known = columns.token_counts[guesses.places] - guesses.positions
        limits = np.minimum(guesses.counts, known)
        positions = np.minimum(guesses.positions[:, None] + depths, columns.token_ids.shape[1] - 1)
        drawn = columns.token_ids[guesses.places[:, None], positions]
        is_right = (drawn == guesses.token_ids) & (depths < limits[:, None])
        right = np.logical_and.accumulate(is_right, axis=1).sum(axis=1)
        columns.drafts.learn(guesses.places, np.minimum(right + 1, limits), right)
        return int(np.minimum(right, guesses.computed_counts).sum())

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
