"""Draws the next token of each row, and reports log-probabilities where a row asked for them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.contract.step import RowError, RowLogprobs
from headrace.kernels.dispatch import Kernels
from headrace.shard.input_batch import InputBatch, StepRows

_NOT_FINITE = "LOGITS_NOT_FINITE"


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

    @torch.inference_mode()
    def draw(self, logits: torch.Tensor, batch: InputBatch, step: StepRows) -> Draw:
        """Draws a token for every row that samples.

        Args:
            logits: [sampling, vocabulary]; may be overwritten.
            batch: The resident batch.
            step: The rows of this step.
        """
        places = step.places[step.samples]
        likeliest = self._kernels.likeliest(logits)
        is_broken = ~likeliest.logits.isfinite().cpu().numpy()
        if is_broken.any():
            # The row is over; zeros only keep the others' arithmetic clean.
            logits[torch.from_numpy(is_broken)] = 0.0
        open_logits = self._bar_endings(logits, batch, places)
        if open_logits is logits and not batch.columns.temperatures[places].any():
            token_ids = likeliest.token_ids
        else:
            token_ids = self._sample(open_logits, batch, places)
        failed = np.zeros(len(step.rows), dtype=np.bool_)
        failed[step.samples.nonzero()[0][is_broken]] = True
        detail = "the model computed a logit that is not a finite number"
        return Draw(
            token_ids=token_ids.cpu().numpy(),
            failed=failed,
            errors=tuple(RowError(row, _NOT_FINITE, detail) for row in step.rows[failed].tolist()),
            logprobs=self._report(logits, token_ids, batch, step, is_broken),
        )

    def _bar_endings(self, logits: torch.Tensor, batch: InputBatch, places: NDArray[np.int64]) -> torch.Tensor:
        """Returns the logits without the tokens that would end a row too early; the argument stays as it is."""
        indices, token_ids = batch.barred_endings(places)
        if len(indices) == 0:
            return logits
        barred = logits.clone()
        barred[torch.from_numpy(indices), torch.from_numpy(token_ids)] = -torch.inf
        return barred

    def _sample(self, logits: torch.Tensor, batch: InputBatch, places: NDArray[np.int64]) -> torch.Tensor:
        columns = batch.columns

        def column(values: NDArray[np.generic]) -> torch.Tensor:
            return torch.from_numpy(values[places]).to(logits.device)

        return self._kernels.sample(
            logits,
            temperature=column(columns.temperatures),
            top_k=column(columns.top_ks),
            top_p=column(columns.top_ps),
            seeds=column(columns.seeds),
            # The drawn token's index is the number of tokens before it.
            positions=column(columns.token_counts),
        )

    def _report(
        self,
        logits: torch.Tensor,
        token_ids: torch.Tensor,
        batch: InputBatch,
        step: StepRows,
        is_broken: NDArray[np.bool_],
    ) -> tuple[RowLogprobs, ...]:
        """Returns log-probabilities of the model's own distribution, before temperature and filters."""
        places = step.places[step.samples]
        wanted = (batch.columns.reports_logprobs[places] & ~is_broken).nonzero()[0]
        if len(wanted) == 0:
            return ()
        top_counts = batch.columns.top_logprob_counts[places[wanted]].tolist()
        index = torch.from_numpy(wanted).to(logits.device)
        found = self._kernels.logprobs(logits[index], token_ids[index], max(top_counts))
        columns = (found.logprobs, found.ranks, found.top_token_ids, found.top_logprobs)
        rows = step.rows[step.samples][wanted].tolist()
        return tuple(
            RowLogprobs(
                row=row,
                is_prompt=False,
                logprobs=(logprob,),
                ranks=(rank,),
                top_token_ids=tuple(top_ids[:count]),
                top_logprobs=tuple(top_logprobs[:count]),
            )
            for row, count, logprob, rank, top_ids, top_logprobs in zip(
                rows, top_counts, *(column.tolist() for column in columns), strict=True
            )
        )
