"""Draws the next token of each row, and has log-probabilities reported where a row asked for them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.contract.step import CONSTRAINT_TOO_COMPLEX, NO_TOKEN_LEFT, RowError, RowLogprobs
from headrace.kernels.dispatch import Kernels
from headrace.shard.free_draws import FreeDraws
from headrace.shard.input_batch import InputBatch, StepRows
from headrace.shard.logits_processor import LogitsProcessor
from headrace.shard.logprob_reporter import DrawnTokens, LogprobReporter
from headrace.shard.seeded_draw import draw_rows

_ERRORS = {
    "LOGITS_NOT_FINITE": "the model computed a logit that is not a finite number",
    NO_TOKEN_LEFT: "every token is barred, by the grammar, banned words or the minimum length",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What was drawn in one step."""

    token_ids: NDArray[np.int64]
    """[sampling]; arbitrary for rows that failed."""
    failed: NDArray[np.bool_]
    """[computing]"""
    errors: tuple[RowError, ...]
    logprobs: tuple[RowLogprobs, ...]


class Sampler:
    """Draws with the parameters in the batch's columns."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self.reporter = LogprobReporter(kernels)
        """Reports what was drawn."""

    def draw(self, logits: torch.Tensor, batch: InputBatch, step: StepRows) -> Draw:
        """Draws a token for every row that samples.

        Args:
            logits: [sampling, vocabulary]; may be overwritten.
            batch: The resident batch.
            step: The rows of this step.
        """
        # NOTE: after a forward pass no cache holds what an array operation needs: each that most steps can do without
        # is one.
        places, rows = step.places[step.samples], step.rows[step.samples]
        likeliest = self._kernels.likeliest(logits)
        broken = (~np.isfinite(likeliest.logits.cpu().numpy())).nonzero()[0]
        if len(broken) > 0:
            # The row is over; zeros only keep the others' arithmetic clean.
            logits[torch.from_numpy(broken)] = 0.0
        errors: dict[int, tuple[str, str]] = {}
        processor = LogitsProcessor(self._kernels, batch, places, likeliest.token_ids.cpu().numpy())
        free = FreeDraws(self._kernels, batch, places, processor)
        processed = logits
        if processor.changes_logits or free.changes_logits:
            # Whoever wants the model's own distribution reported needs it as it was.
            dtype = torch.float32 if processor.computes else logits.dtype
            processed = logits.to(dtype, copy=bool(batch.columns.reports_logprobs[places].any()))
            for index in processor.apply(processed).nonzero()[0].tolist():
                errors[index] = (NO_TOKEN_LEFT, _ERRORS[NO_TOKEN_LEFT])
        if not processor.changes_logits and np.count_nonzero(batch.columns.temperatures[places]) == 0:
            token_ids = likeliest.token_ids
        else:
            token_ids = draw_rows(self._kernels, processed, batch.columns, places)
        for index in free.settle(processed, token_ids).tolist():
            errors[index] = (NO_TOKEN_LEFT, _ERRORS[NO_TOKEN_LEFT])
        for index, detail in (*processor.failed_grammars.items(), *free.failed_grammars.items()):
            errors[index] = (CONSTRAINT_TOO_COMPLEX, detail)
        for index in broken.tolist():
            errors[index] = ("LOGITS_NOT_FINITE", _ERRORS["LOGITS_NOT_FINITE"])
        failed, is_good = np.zeros(len(step.rows), dtype=np.bool_), np.ones(len(rows), dtype=np.bool_)
        if errors:
            is_good[list(errors)] = False
            failed[step.samples] = ~is_good
        drawn = DrawnTokens(logits=logits, processed=processed, token_ids=token_ids)
        return Draw(
            token_ids=token_ids.cpu().numpy(),
            failed=failed,
            errors=tuple(RowError(int(rows[index]), *error) for index, error in sorted(errors.items())),
            logprobs=self.reporter.report_drawn(drawn, batch.columns, rows, places, is_good),
        )
