"""Draws the rows that draw freely: first the token, then whether the grammar allows it.

Such a row is drawn from what the model and its options leave, the grammar apart,
with its position's first random number. Where the grammar allows the token, that
is the row's. Else its mask is made, and the row is drawn again among what is
allowed, with the position's second number.

That is exactly a draw under the mask. Let P be a token's probability without
the mask and A that of all allowed ones: the token comes by the first draw with P,
and by the second with (1 - A) * P / A, together P / A. At temperature 0 the
likeliest of all tokens, where it is allowed, is the likeliest of the allowed ones.

Which row draws so is a matter of its request alone, and so are both numbers:
a token depends on nothing else. Rows with top-k, top-p, min-p or typical-p do not,
since what these drop depends on what is allowed.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.kernels.dispatch import Kernels
from headrace.shard.input_batch import InputBatch
from headrace.shard.logits_processor import LogitsProcessor
from headrace.shard.seeded_draw import draw_rows

Ints = NDArray[np.int64]


class FreeDraws:
    """The rows of one step that draw freely."""

    def __init__(self, kernels: Kernels, batch: InputBatch, places: Ints, processor: LogitsProcessor) -> None:
        """Takes the places of the rows that sample, and what processes their logits."""
        self._kernels = kernels
        self._batch = batch
        self._places = places
        self._processor = processor
        self._rows = processor.free_rows
        self.failed_grammars: dict[int, str] = {}
        """Rows whose grammar could not be followed further, and why; known once they are settled."""

    @property
    def changes_logits(self) -> bool:
        """Whether `settle` may change logits that are to be reported."""
        return len(self._rows) > 0 and bool(self._batch.columns.reports_logprobs[self._places[self._rows]].any())

    def settle(self, logits: torch.Tensor, token_ids: torch.Tensor) -> Ints:
        """Draws again where the grammar refuses.

        Args:
            logits: [sampling, vocabulary] processed. Masked where that is needed, or reported.
            token_ids: [sampling] what was drawn; written.

        Returns:
            The rows that have no token left.
        """
        grammars, rows = self._batch.grammars, self._rows
        if len(rows) == 0:
            return rows
        is_allowed, self.failed_grammars = grammars.allow(rows, token_ids.cpu().numpy()[rows])
        is_refused = ~is_allowed | np.isin(rows, self._processor.hopeless_rows)
        needed = rows[is_refused | self._batch.columns.reports_processed[self._places[rows]]]
        if len(needed) == 0:
            return needed
        masks = grammars.make_masks(needed)
        self.failed_grammars |= masks.failures
        is_empty = self._processor.mask(logits, masks)
        # NOTE: row by row, since gathering them would copy their logits, and take longer than to draw.
        for row in rows[is_refused].tolist():
            one, place = slice(row, row + 1), self._places[row : row + 1]
            token_ids[one] = draw_rows(self._kernels, logits[one], self._batch.columns, place, is_second=True)
        return needed[is_empty]
