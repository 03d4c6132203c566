"""Reports the log-probabilities of tokens to the rows that asked for them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.contract.step import RowLogprobs
from headrace.kernels.dispatch import Kernels
from headrace.kernels.logits_filters import filtered_scores
from headrace.kernels.token_logprobs import TokenLogprobs
from headrace.shard.batch_columns import BatchColumns
from headrace.shard.step_rows import PromptTargets

Ints = NDArray[np.int64]

_PROMPT_SLICE = 256
"""Prompt tokens whose logits are in memory at once: those of a whole chunk would take as much as the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnTokens:
    """The tokens of one step, and what they were drawn from."""

    logits: torch.Tensor
    """[sampling, vocabulary] as the model computed them; arbitrary if no row reports log-probabilities."""
    processed: torch.Tensor
    """[sampling, vocabulary] after the logits processors; may be `logits` itself."""
    token_ids: torch.Tensor
    """[sampling]"""


class LogprobReporter:
    """Reads what to report from the batch's columns."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def report_drawn(
        self, drawn: DrawnTokens, columns: BatchColumns, rows: Ints, places: Ints, is_good: NDArray[np.bool_]
    ) -> tuple[RowLogprobs, ...]:
        """Returns a report for each row that wants one, in row order.

        The distribution is the model's own, before temperature and all else; or, for a
        row that asked for that, the one its token was drawn from.

        Args:
            drawn: The tokens.
            columns: The batch's columns.
            rows: [sampling]
            places: [sampling]
            is_good: [sampling] whether the row's token counts.
        """
        wanted = columns.reports_logprobs[places] & is_good
        if not wanted.any():
            return ()
        is_processed = columns.reports_processed[places]
        raw, processed = (wanted & ~is_processed).nonzero()[0], (wanted & is_processed).nonzero()[0]
        reports: list[RowLogprobs] = []
        if len(raw) > 0:
            index = torch.from_numpy(raw).to(drawn.logits.device)
            reports += self._reports(drawn.logits[index], drawn.token_ids[index], columns, rows[raw], places[raw])
        if len(processed) > 0:
            index = torch.from_numpy(processed).to(drawn.logits.device)
            chosen = drawn.token_ids[index]
            scores = self._drawn_from(drawn.processed[index].to(torch.float32), columns, places[processed], chosen)
            reports += self._reports(scores, chosen, columns, rows[processed], places[processed])
        return tuple(sorted(reports, key=lambda report: report.row))

    def report_prompt(
        self,
        hidden: torch.Tensor,
        project: Callable[[torch.Tensor], torch.Tensor],
        targets: PromptTargets,
        columns: BatchColumns,
    ) -> tuple[RowLogprobs, ...]:
        """Returns the log-probabilities of prompt tokens in the model's own distribution, a report for each row.

        Args:
            hidden: [target, hidden]
            project: Makes logits of hidden states.
            targets: The tokens.
            columns: The batch's columns.
        """
        top_counts = columns.top_logprob_counts[targets.places].tolist()
        token_ids = torch.from_numpy(targets.token_ids).to(hidden.device)
        found = [
            value
            for start in range(0, len(top_counts), _PROMPT_SLICE)
            for value in _by_token(
                self._kernels.logprobs(
                    project(hidden[start : start + _PROMPT_SLICE]),
                    token_ids[start : start + _PROMPT_SLICE],
                    max(top_counts),
                )
            )
        ]
        by_row: dict[int, list[int]] = {}
        for index, row in enumerate(targets.rows.tolist()):
            by_row.setdefault(row, []).append(index)
        return tuple(
            RowLogprobs(
                row=row,
                is_prompt=True,
                logprobs=tuple(found[index][0] for index in indices),
                ranks=tuple(found[index][1] for index in indices),
                top_token_ids=tuple(top for index in indices for top in found[index][2][: top_counts[index]]),
                top_logprobs=tuple(top for index in indices for top in found[index][3][: top_counts[index]]),
            )
            for row, indices in by_row.items()
        )

    def _drawn_from(
        self, scores: torch.Tensor, columns: BatchColumns, places: Ints, token_ids: torch.Tensor
    ) -> torch.Tensor:
        def column(values: NDArray[np.generic]) -> torch.Tensor:
            return torch.from_numpy(values[places]).to(scores.device)

        return filtered_scores(
            scores, column(columns.temperatures), column(columns.top_ks), column(columns.top_ps), token_ids
        )

    def _reports(
        self, scores: torch.Tensor, token_ids: torch.Tensor, columns: BatchColumns, rows: Ints, places: Ints
    ) -> Iterator[RowLogprobs]:
        top_counts = columns.top_logprob_counts[places].tolist()
        found = self._kernels.logprobs(scores, token_ids, max(top_counts))
        for row, count, values in zip(rows.tolist(), top_counts, _by_token(found), strict=True):
            logprob, rank, top_token_ids, top_logprobs = values
            yield RowLogprobs(
                row=row,
                is_prompt=False,
                logprobs=(logprob,),
                ranks=(rank,),
                top_token_ids=tuple(top_token_ids[:count]),
                top_logprobs=tuple(top_logprobs[:count]),
            )


def _by_token(found: TokenLogprobs) -> Iterator[tuple[float, int, list[int], list[float]]]:
    columns = (found.logprobs, found.ranks, found.top_token_ids, found.top_logprobs)
    return zip(*(column.tolist() for column in columns), strict=True)
