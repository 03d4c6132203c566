"""A model that is a table, and a drafter that knows what will be drawn and is wrong as often as asked."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.contract.clock import Clock, MonotonicClock
from headrace.contract.engine import EngineDescription
from headrace.contract.step import StepPlan, StepResult
from headrace.contract.vocabulary import Vocabulary
from headrace.kernels.dispatch import select
from headrace.shard.capabilities import NATIVE_FIELDS
from headrace.shard.input_batch import InputBatch
from headrace.shard.sampler import Sampler
from headrace.shard.speculation.speculator import Speculator
from headrace.shard.speculation.step_cost import StepCost
from headrace.shard.token_drawing import draw_step

Ints = NDArray[np.int64]
Logits = Callable[[tuple[int, ...]], torch.Tensor]
"""Logits after some tokens, [vocabulary]."""


def free_cost() -> StepCost:
    """Steps that take the same however many tokens they have, so that guessing always pays."""
    return StepCost((1, 2), (1.0, 1.0))


def random_logits(vocabulary_size: int) -> Logits:
    """Logits that depend on every token before."""

    @cache
    def logits(tokens: tuple[int, ...]) -> torch.Tensor:
        numbers = np.random.default_rng([*tokens, len(tokens)])
        return torch.from_numpy(2.0 * numbers.standard_normal(vocabulary_size)).to(torch.float32)

    return logits


class Prophet:
    """A drafter that was told the texts."""

    prior = 0.9
    guesses_freely = False

    def __init__(self, texts: Sequence[tuple[int, ...]], *, wrong_one_in: int, vocabulary_size: int) -> None:
        """Takes whole texts; one guess in so many is wrong, none if 0."""
        self._texts = texts
        self._wrong_one_in = wrong_one_in
        self._vocabulary_size = vocabulary_size

    def depth_s(self, _row_count: int) -> float:
        return 0.0

    def look(self, _batch: InputBatch, places: Ints) -> NDArray[np.bool_]:
        return np.ones(len(places), dtype=np.bool_)

    def prepare(self, _batch: InputBatch, places: Ints) -> NDArray[np.bool_]:
        return np.ones(len(places), dtype=np.bool_)

    def propose(self, batch: InputBatch, places: Ints, counts: Ints) -> Ints:
        guesses = np.zeros((len(places), int(counts.max())), dtype=np.int64)
        for row, place in enumerate(places.tolist()):
            known = tuple(batch.columns.token_ids[place, : batch.columns.token_counts[place]].tolist())
            text = next((text for text in self._texts if text[: len(known)] == known), known)
            for depth in range(guesses.shape[1]):
                position = len(known) + depth
                guess = text[position] if position < len(text) else 0
                is_wrong = self._wrong_one_in and hash((known, depth)) % self._wrong_one_in == 0
                guesses[row, depth] = (guess + bool(is_wrong)) % self._vocabulary_size
        return guesses


class TableEngine:
    """An engine whose forward pass is a function of the tokens, around the batch, the sampler and the drafts."""

    def __init__(
        self,
        logits: Logits,
        *,
        vocabulary_size: int,
        prophet: Prophet | None = None,
        draft_token_limit: int = 5,
        row_limit: int = 0,
        clock: Clock | None = None,
    ) -> None:
        """Takes logits by text, who guesses, and the clock by which guessing takes its time; a step takes 1 s."""
        self._logits = logits
        self.description = EngineDescription(
            engine="table",
            architecture="table",
            weight_type="none",
            vocabulary_size=vocabulary_size,
            context_token_count=512,
            block_size=4,
            block_count=16001,
            steps_in_flight=2,
            supported_fields=NATIVE_FIELDS,
            end_of_sequence_token_ids=(2,),
            row_limit=row_limit,
            draft_token_limit=0 if prophet is None else draft_token_limit,
        )
        self._batch = InputBatch(self.description)
        self._sampler = Sampler(select(torch.device("cpu"), "reference"))
        self._speculator: Speculator | None = None
        if prophet is not None:
            self._speculator = Speculator(
                self.description, drafter=prophet, cost=free_cost(), clock=clock or MonotonicClock()
            )

    def reset(self) -> None:
        self._batch.clear()

    def load_vocabulary(self, vocabulary: Vocabulary) -> None:
        self._batch.grammars.load(vocabulary)

    def execute(self, plan: StepPlan) -> StepResult:
        batch, speculator = self._batch, self._speculator
        step = batch.apply(plan)
        drafts = None if speculator is None else speculator.draft(batch, step)
        if drafts is not None:
            step = batch.add_drafts(step, drafts)
        batch.grammars.begin(step.places[step.samples])
        flat = batch.flatten(step)
        owners = np.repeat(step.places, step.chunk_counts)
        texts = [
            tuple(batch.columns.token_ids[owners[index], : flat.positions[index] + 1].tolist())
            for index in step.output_indices().tolist()
        ]
        logits = torch.empty(0, self.description.vocabulary_size)
        if texts:
            logits = torch.stack([self._logits(text) for text in texts])
        drawn = draw_step(self._sampler, batch, step, logits, drafts=drafts)
        if speculator is not None:
            speculator.learn(batch, step, 1.0)
        return StepResult(
            step_id=plan.step_id,
            token_counts=drawn.outcomes.token_counts,
            token_ids=drawn.outcomes.token_ids,
            ended_rows=drawn.outcomes.ended_rows,
            row_ends=drawn.outcomes.row_ends,
            errors=drawn.errors,
            logprobs=drawn.logprobs,
            draft_rows=() if drafts is None else tuple(step.rows[drafts.indices].tolist()),
            draft_token_counts=() if drafts is None else tuple(drafts.counts.tolist()),
        )
