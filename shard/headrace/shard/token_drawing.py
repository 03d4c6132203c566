"""Draws the tokens of a step: one for each row that samples, and one more after each guess that was right.

A guess is a token that somebody thinks the row will draw. The forward pass
computed it along with the row's last token, so that there are logits after each
guess. They are gone through in order: the token at a position is drawn exactly
as if the position had been computed alone, from the same logits, by the same
processors over the tokens drawn so far and with that position's own random
number. If it is the guess, the logits after the guess are those of the row's
next position; if it is not, they are of another text, and the row stops there.

So the tokens of a request are those that it would have had without guesses, and
with them their distribution. This is rejection sampling whose proposal is one
token: the guess is accepted with the probability that the model gives it, and
what is drawn in its place otherwise has the distribution of the rest (Leviathan,
Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding", 2023).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.contract.step import RowError, RowLogprobs
from headrace.kernels.likeliest_tokens import LikeliestTokens
from headrace.shard.input_batch import InputBatch
from headrace.shard.sampler import Draw, Sampler
from headrace.shard.step_rows import RowOutcomes, StepDrafts, StepRows

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(slots=True, kw_only=True)
class DrawnStep:
    """What a step came to."""

    outcomes: RowOutcomes
    errors: tuple[RowError, ...]
    logprobs: tuple[RowLogprobs, ...]


def draw_step(
    sampler: Sampler,
    batch: InputBatch,
    step: StepRows,
    logits: torch.Tensor | LikeliestTokens,
    *,
    drafts: StepDrafts | None = None,
    failed: Bools | None = None,
) -> DrawnStep:
    """Draws the tokens of a step and makes them known to the batch.

    Args:
        sampler: Draws one token for each of some rows.
        batch: The resident batch, which applied the plan of the step.
        step: The rows, drafts included.
        logits: [sampling and drafted, vocabulary] of each row its last known token's, then its drafts'. May be
            overwritten. Where nothing was guessed, the likeliest do, if the sampler needs no more.
        drafts: What was guessed.
        failed: [computing] rows that are over because of another error.
    """
    if drafts is None:
        draw = sampler.draw(logits, batch, step)
        outcomes = _record(batch, step, draw, failed)
        return DrawnStep(outcomes=outcomes, errors=draw.errors, logprobs=draw.logprobs)
    assert isinstance(logits, torch.Tensor), "guesses need logits"
    lengths = 1 + step.draft_counts[step.samples]
    firsts = np.cumsum(lengths) - lengths
    draw = sampler.draw(_rows_of(logits, firsts), batch, step)
    outcomes = _record(batch, step, draw, failed)
    sampling = np.cumsum(step.samples)[drafts.indices] - 1
    follower = _Follower(sampler=sampler, batch=batch, step=step, logits=logits, firsts=firsts[sampling], drafts=drafts)
    follower.follow(draw.token_ids[sampling])
    return DrawnStep(
        outcomes=join_outcomes([outcomes, *follower.outcomes]),
        errors=draw.errors,
        logprobs=tuple(sorted(draw.logprobs + follower.logprobs, key=lambda report: report.row)),
    )


class _Follower:
    """Draws on after guesses that were right."""

    def __init__(
        self,
        *,
        sampler: Sampler,
        batch: InputBatch,
        step: StepRows,
        logits: torch.Tensor,
        firsts: Ints,
        drafts: StepDrafts,
    ) -> None:
        """Takes [drafting] where each row's logits begin."""
        self._sampler = sampler
        self._batch = batch
        self._step = step
        self._logits = logits
        self._firsts = firsts
        self._drafts = drafts
        self.outcomes: list[RowOutcomes] = []
        self.logprobs: tuple[RowLogprobs, ...] = ()

    def follow(self, drawn: Ints) -> None:
        """Takes [drafting] the first tokens that were drawn; draws the rest."""
        drafts = self._drafts
        going_on = np.arange(len(drawn))
        for depth in range(drafts.token_ids.shape[1]):
            places = self._step.places[drafts.indices[going_on]]
            is_right = (drawn == drafts.token_ids[going_on, depth]) & (drafts.counts[going_on] > depth)
            going_on = going_on[is_right & ~self._batch.columns.is_over[places]]
            if len(going_on) == 0:
                return
            going_on, drawn = self._draw_after(going_on, depth)

    def _draw_after(self, going_on: Ints, depth: int) -> tuple[Ints, Ints]:
        """Draws after a right guess; returns the rows for which that went well, and what they drew.

        What fails here is left to fail in a step of its own: the tokens before it are good.
        """
        batch, indices = self._batch, self._drafts.indices[going_on]
        places = self._step.places[indices]
        rows = self._step.further(self._step.rows[indices], places, batch.columns.computed_counts[places])
        batch.grammars.begin(places)
        draw = self._sampler.draw(_rows_of(self._logits, self._firsts[going_on] + depth + 1), batch, rows)
        drawn = draw.token_ids
        if draw.failed is not None:
            good = ~draw.failed
            going_on, drawn = going_on[good], drawn[good]
            rows = self._step.further(rows.rows[good], places[good], rows.starts[good])
        self.outcomes.append(batch.record(rows, drawn))
        self.logprobs += draw.logprobs
        return going_on, drawn


def _record(batch: InputBatch, step: StepRows, draw: Draw, failed: Bools | None) -> RowOutcomes:
    if failed is None or draw.failed is None:
        return batch.record(step, draw.token_ids, draw.failed if failed is None else failed)
    return batch.record(step, draw.token_ids, draw.failed | failed)


def _rows_of(logits: torch.Tensor, indices: Ints) -> torch.Tensor:
    return logits[torch.from_numpy(indices).to(logits.device)]


def join_outcomes(parts: list[RowOutcomes]) -> RowOutcomes:
    """Returns what came of several draws for the same rows, one after the other."""
    counts = np.array([part.token_counts for part in parts], dtype=np.int64)
    totals = counts.sum(axis=0)
    ends = np.cumsum(totals)
    # The tokens of a row lie together: where a part's go is where the row begins, plus what earlier parts brought.
    starts = (ends - totals)[None, :] + np.cumsum(counts, axis=0) - counts
    token_ids = np.zeros(int(totals.sum()), dtype=np.int64)
    for part, part_counts, part_starts in zip(parts, counts, starts, strict=True):
        token_ids[part_starts[part_counts > 0]] = part.token_ids
    ended = sorted((row, end) for part in parts for row, end in zip(part.ended_rows, part.row_ends, strict=True))
    return RowOutcomes(
        token_counts=tuple(totals.tolist()),
        token_ids=tuple(token_ids.tolist()),
        ended_rows=tuple(row for row, _ in ended),
        row_ends=tuple(end for _, end in ended),
    )
