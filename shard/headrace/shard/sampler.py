"""Draws the next token of each row, and has log-probabilities reported where a row asked for them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.contract.step import CONSTRAINT_TOO_COMPLEX, NO_TOKEN_LEFT, RowError, RowLogprobs
from headrace.kernels.dispatch import Kernels
from headrace.kernels.likeliest_tokens import LikeliestTokens
from headrace.shard.batch_columns import CHANGES, DRAWS, REPORTS
from headrace.shard.free_draws import FreeDraws
from headrace.shard.input_batch import InputBatch
from headrace.shard.logits_processor import LogitsProcessor
from headrace.shard.logprob_reporter import DrawnTokens, LogprobReporter
from headrace.shard.seeded_draw import draw_rows
from headrace.shard.step_rows import StepRows

_ERRORS = {
    "LOGITS_NOT_FINITE": "the model computed a logit that is not a finite number",
    NO_TOKEN_LEFT: "every token is barred, by the grammar, banned words or the minimum length",
}


@dataclass(slots=True, kw_only=True)
class Draw:
    """What was drawn in one step."""

    token_ids: NDArray[np.int64]
    """[sampling]; arbitrary for rows that failed."""
    failed: NDArray[np.bool_] | None
    """[computing] None if no row did."""
    errors: tuple[RowError, ...]
    logprobs: tuple[RowLogprobs, ...]


class Sampler:
    """Draws with the parameters in the batch's columns."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self.reporter = LogprobReporter(kernels)
        """Reports what was drawn."""

    def needs_logits(self, step: StepRows) -> bool:
        """Whether drawing for the rows of a step takes more than their likeliest tokens."""
        return step.needs & (CHANGES | DRAWS | REPORTS) != 0

    def draw(self, logits: torch.Tensor | LikeliestTokens, batch: InputBatch, step: StepRows) -> Draw:
        """Draws a token for every row that samples.

        Args:
            logits: [sampling, vocabulary], may be overwritten; or the likeliest alone, where `needs_logits` is false.
            batch: The resident batch.
            step: The rows of this step.
        """
        assert isinstance(logits, torch.Tensor) or not self.needs_logits(step), "the likeliest are not enough"
        likeliest = logits if isinstance(logits, LikeliestTokens) else self._kernels.likeliest(logits)
        # NOTE: after a forward pass no cache holds what an array operation needs: each that most steps can do without
        # is one.
        peaks = likeliest.logits.cpu().numpy().tolist()
        broken = [index for index, peak in enumerate(peaks) if not abs(peak) < math.inf]
        errors: dict[int, tuple[str, str]] = {}
        token_ids, processed = likeliest.token_ids, logits
        if isinstance(logits, torch.Tensor):
            if broken:
                # The rows are over; zeros only keep the others' arithmetic clean.
                logits[torch.tensor(broken)] = 0.0
            token_ids, processed = self._draw_from(logits, likeliest, batch, step, errors)
        if broken:
            errors |= dict.fromkeys(broken, ("LOGITS_NOT_FINITE", _ERRORS["LOGITS_NOT_FINITE"]))
        logprobs: tuple[RowLogprobs, ...] = ()
        if step.needs & REPORTS:
            assert isinstance(logits, torch.Tensor)
            assert isinstance(processed, torch.Tensor), "they come from the logits"
            drawn = DrawnTokens(logits=logits, processed=processed, token_ids=token_ids)
            logprobs = self._report(drawn, batch, step, errors)
        return Draw(
            token_ids=token_ids.cpu().numpy(),
            failed=_failed(step, errors) if errors else None,
            errors=_row_errors(step, errors) if errors else (),
            logprobs=logprobs,
        )

    def _draw_from(
        self,
        logits: torch.Tensor,
        likeliest: LikeliestTokens,
        batch: InputBatch,
        step: StepRows,
        errors: dict[int, tuple[str, str]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what was drawn, and the logits that it was drawn from; adds errors."""
        if step.needs & CHANGES:
            processed, token_ids = self._draw_changed(logits, likeliest, batch, step, errors)
            return token_ids, processed
        if step.needs & DRAWS:
            return draw_rows(self._kernels, logits, batch.columns, step.sampling(step.places)), logits
        return likeliest.token_ids, logits

    def _draw_changed(
        self,
        logits: torch.Tensor,
        likeliest: LikeliestTokens,
        batch: InputBatch,
        step: StepRows,
        errors: dict[int, tuple[str, str]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns processed logits and what was drawn, where any row may ask for more than a draw; adds errors."""
        places = step.sampling(step.places)
        processor = LogitsProcessor(self._kernels, batch, places, likeliest.token_ids.cpu().numpy())
        free = FreeDraws(self._kernels, batch, places, processor)
        processed = logits
        if processor.changes_logits or free.changes_logits:
            # Whoever wants the model's own distribution reported needs it as it was.
            dtype = torch.float32 if processor.computes else logits.dtype
            processed = logits.to(dtype, copy=bool(step.needs & REPORTS))
            for index in processor.apply(processed).nonzero()[0].tolist():
                errors[index] = (NO_TOKEN_LEFT, _ERRORS[NO_TOKEN_LEFT])
        if processor.changes_logits or step.needs & DRAWS:
            token_ids = draw_rows(self._kernels, processed, batch.columns, places)
        else:
            token_ids = likeliest.token_ids
        for index in free.settle(processed, token_ids).tolist():
            errors[index] = (NO_TOKEN_LEFT, _ERRORS[NO_TOKEN_LEFT])
        for index, detail in (*processor.failed_grammars.items(), *free.failed_grammars.items()):
            errors[index] = (CONSTRAINT_TOO_COMPLEX, detail)
        return processed, token_ids

    def _report(
        self, drawn: DrawnTokens, batch: InputBatch, step: StepRows, errors: Mapping[int, tuple[str, str]]
    ) -> tuple[RowLogprobs, ...]:
        rows, places = step.sampling(step.rows), step.sampling(step.places)
        is_good = np.ones(len(rows), dtype=np.bool_)
        is_good[list(errors)] = False
        return self.reporter.report_drawn(drawn, batch.columns, rows, places, is_good)


def _failed(step: StepRows, errors: Mapping[int, tuple[str, str]]) -> NDArray[np.bool_]:
    failed = np.zeros(len(step.rows), dtype=np.bool_)
    failed[step.samples.nonzero()[0][list(errors)]] = True
    return failed


def _row_errors(step: StepRows, errors: Mapping[int, tuple[str, str]]) -> tuple[RowError, ...]:
    rows = step.sampling(step.rows)
    return tuple(RowError(int(rows[index]), *error) for index, error in sorted(errors.items()))
