"""Changes the logits of the rows that ask for more than temperature, top-k and top-p, before a token is drawn.

The order, each step on what the one before it left:

1. logit bias
2. repetition penalty, then frequency and presence penalties
3. length penalty
4. watermark
5. bars: what the grammar does not allow, endings before the minimum length, and what would complete a banned text
6. for rows that do not decode greedily, at their temperature: typical-p, then min-p

Rows that draw freely meet their grammar after the draw, in free_draws.py.
Top-k and top-p follow, where the token is drawn. docs/sampling.md has the definitions.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.kernels.dispatch import Kernels
from headrace.kernels.green_list import green_mask
from headrace.kernels.logits_filters import is_at_least, is_typical, row_slices
from headrace.shard.grammar_rows import GrammarMasks
from headrace.shard.input_batch import InputBatch
from headrace.shard.processor_columns import ProcessorColumns

Ints = NDArray[np.int64]
Mask = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

_LARGEST = 1e30
"""What a penalty may make of a logit: far from infinity, since temperature still divides it."""


class LogitsProcessor:
    """Applies the options in a batch's columns to the logits of one step."""

    def __init__(self, kernels: Kernels, batch: InputBatch, places: Ints, likeliest: Ints) -> None:
        """Takes the places of the rows that sample, in the order of the logits, and the likeliest token of each."""
        self._kernels = kernels
        self._columns: ProcessorColumns = batch.columns.processors
        self._temperatures = batch.columns.temperatures[places]
        self._places = places
        self._batch = batch
        self._rows: Ints = self._columns.is_used[places].nonzero()[0]
        self._likeliest = likeliest
        self._masks = batch.grammars.masks()
        self.free_rows: Ints = batch.grammars.free_rows()
        """Rows that draw freely, ascending."""
        self._early_rows, self._endings = self._early_endings()
        self._banned_rows, self._banned_token_ids = self._columns.barred_tokens(places)
        self._ending_logits = torch.empty(0)
        self._hopeless_rows = self.free_rows[:0]

    @property
    def changes_logits(self) -> bool:
        """Whether any row asks for something."""
        return len(self._rows) > 0 or len(self._early_rows) > 0 or self._masks is not None

    @property
    def computes(self) -> bool:
        """Whether any logit is changed to another number, not just taken out of the draw."""
        return len(self._rows) > 0

    @property
    def hopeless_rows(self) -> Ints:
        """Rows that draw freely, from which everything was barred: whatever they draw is to be refused."""
        return self._hopeless_rows

    @property
    def failed_grammars(self) -> Mapping[int, str]:
        """Rows whose grammar could not be followed further, and why."""
        return {} if self._masks is None else self._masks.failures

    def apply(self, logits: torch.Tensor) -> NDArray[np.bool_]:
        """Changes the logits in place.

        Args:
            logits: [sampling, vocabulary], each row with a finite one; float32 where anything is computed.

        Returns:
            [sampling] whether no token is left to draw. Such a row's logits are zeros.
        """
        if len(self._rows) > 0:
            self._add_biases(logits)
            self._penalize(logits)
            self._penalize_length(logits)
            self._mark(logits)
        is_empty = self._bar(logits)
        if len(self._rows) > 0:
            self._filter(logits)
        return is_empty

    def mask(self, logits: torch.Tensor, masks: GrammarMasks) -> NDArray[np.bool_]:
        """Masks rows that draw freely, once they need it.

        Args:
            logits: [sampling, vocabulary] as `apply` left them; written.
            masks: Of rows that draw freely.

        Returns:
            [mask] whether no token is left to draw. Such a row's logits are zeros.
        """
        hopeless = self._hopeless_rows[np.isin(self._hopeless_rows, masks.indices)]
        if len(hopeless) > 0:
            logits[self._index(hopeless), 0] = -torch.inf
        at_end = np.isin(self._early_rows, masks.indices[~masks.may_go_on]).nonzero()[0]
        if len(at_end) > 0:
            # Their endings were barred before it was known that the grammar allows nothing else.
            where = self._index(self._early_rows[at_end]), self._index(self._endings[at_end])
            logits[where] = self._ending_logits[self._index(at_end)]
        is_empty = self._keep_allowed(logits, masks)
        if is_empty.any():
            logits[self._index(masks.indices[is_empty])] = 0.0
        return is_empty

    def _keep_allowed(self, logits: torch.Tensor, masks: GrammarMasks) -> NDArray[np.bool_]:
        """Applies masks, and returns [mask] whether that leaves no token."""
        index, words = self._index(masks.indices), torch.from_numpy(masks.words)
        peaks = self._kernels.keep_allowed(logits, index.to(logits.device), words.to(logits.device))
        is_empty: NDArray[np.bool_] = (peaks == -torch.inf).cpu().numpy()
        return is_empty

    def _bar(self, logits: torch.Tensor) -> NDArray[np.bool_]:
        """Takes every barred token out of the draw, and returns [sampling] whether that leaves none."""
        is_empty = np.zeros(len(self._places), dtype=np.bool_)
        if len(self._banned_rows) > 0:
            logits[self._index(self._banned_rows), self._index(self._banned_token_ids)] = -torch.inf
        if len(self._early_rows) > 0:
            where = self._index(self._early_rows), self._index(self._endings)
            self._ending_logits = logits[where]
            logits[where] = -torch.inf
        doubtful = self._rows_without_likeliest()
        if self._masks is not None:
            is_empty[self._masks.indices] = self._keep_allowed(logits, self._masks)
            doubtful = doubtful[~np.isin(doubtful, self._masks.indices)]
        if len(doubtful) > 0:
            is_empty[doubtful] = (logits[self._index(doubtful)].amax(dim=1) == -torch.inf).cpu().numpy()
        if is_empty.any():
            self._hopeless_rows = self.free_rows[is_empty[self.free_rows]]
            logits[self._index(self._hopeless_rows), 0] = 0.0
            is_empty[self._hopeless_rows] = False
            logits[torch.from_numpy(is_empty)] = 0.0
        return is_empty

    def _rows_without_likeliest(self) -> Ints:
        """Returns the rows whose likeliest token was barred, ascending. Any other has this one left."""
        rows = np.concatenate((self._early_rows, self._banned_rows))
        token_ids = np.concatenate((self._endings, self._banned_token_ids))
        without: Ints = np.unique(rows[self._likeliest[rows] == token_ids])
        return without

    def _early_endings(self) -> tuple[Ints, Ints]:
        early, endings = self._batch.barred_endings(self._places)
        if self._masks is not None and len(early) > 0:
            # Where a grammar allows nothing but the end, no minimum length can make the completion longer.
            kept = ~np.isin(early, self._masks.indices[~self._masks.may_go_on])
            early, endings = early[kept], endings[kept]
        return early, endings

    def _add_biases(self, logits: torch.Tensor) -> None:
        columns, places = self._columns, self._places[self._rows]
        token_ids = columns.bias_token_ids[places]
        rows, entries = (token_ids >= 0).nonzero()
        if len(rows) > 0:
            where = self._index(self._rows[rows]), self._index(token_ids[rows, entries])
            logits[where] += self._tensor(columns.biases[places[rows], entries], logits)

    def _penalize(self, logits: torch.Tensor) -> None:
        columns = self._columns
        penalized = self._rows[columns.is_penalized[self._places[self._rows]]]
        if len(penalized) == 0:
            return
        places = self._places[penalized]
        token_ids = columns.tally.token_ids[places]
        rows, entries = (token_ids >= 0).nonzero()
        places = places[rows]
        where = self._index(penalized[rows]), self._index(token_ids[rows, entries])
        repetition = self._tensor(columns.repetition_penalties[places], logits)
        counts = columns.tally.generated_counts[places, entries]
        subtracted = columns.frequency_penalties[places] * counts + columns.presence_penalties[places] * (counts > 0)
        values = logits[where]
        values = torch.where(values > 0, values / repetition, values * repetition)
        values -= self._tensor(subtracted.astype(np.float32), logits)
        logits[where] = values.clamp(-_LARGEST, _LARGEST)

    def _penalize_length(self, logits: torch.Tensor) -> None:
        columns = self._columns
        generated = self._batch.generated_counts(self._places[self._rows])
        late = self._rows[generated > columns.length_starts[self._places[self._rows]]]
        if len(late) == 0:
            return
        rows, token_ids = self._batch.end_of_sequence_tokens(self._places[late])
        places = self._places[late[rows]]
        excess = self._batch.generated_counts(places) - columns.length_starts[places]
        with np.errstate(over="ignore"):
            growth = np.minimum(columns.length_decays[places] ** excess, _LARGEST) - 1.0
        where = self._index(late[rows]), self._index(token_ids)
        values = logits[where]
        values += values.abs() * self._tensor(growth.astype(np.float32), logits)
        logits[where] = values.clamp(-_LARGEST, _LARGEST)

    def _mark(self, logits: torch.Tensor) -> None:
        columns = self._columns
        marked = self._rows[columns.green_thresholds[self._places[self._rows]] > 0]
        if len(marked) == 0:
            return
        places = self._places[marked]
        keys = torch.from_numpy(columns.watermark_keys[places]).to(logits.device)
        previous = torch.from_numpy(self._batch.last_tokens(places)).to(logits.device)
        thresholds = torch.from_numpy(columns.green_thresholds[places]).to(logits.device)
        deltas = self._tensor(columns.watermark_deltas[places], logits)
        index = self._index(marked)
        for part in row_slices(len(marked), logits.device):
            green = green_mask(keys[part], previous[part], thresholds[part], logits.shape[1])
            logits[index[part]] += green * deltas[part, None]

    def _filter(self, logits: torch.Tensor) -> None:
        columns, drawn = self._columns, self._rows[self._temperatures[self._rows] > 0]
        typical_ps = columns.typical_ps[self._places[drawn]]
        self._keep(logits, drawn[typical_ps < 1], typical_ps[typical_ps < 1], is_typical)
        min_ps = columns.min_ps[self._places[drawn]]
        self._keep(logits, drawn[min_ps > 0], min_ps[min_ps > 0], is_at_least)

    def _keep(self, logits: torch.Tensor, rows: Ints, values: NDArray[np.float32], mask: Mask) -> None:
        temperatures = self._tensor(self._temperatures[rows], logits)
        thresholds = self._tensor(values, logits)
        index = self._index(rows)
        for part in row_slices(len(rows), logits.device):
            scores = logits[index[part]]
            kept = mask(scores, temperatures[part], thresholds[part])
            logits[index[part]] = scores.masked_fill_(~kept, -torch.inf)

    def _index(self, values: NDArray[np.integer]) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.int64))

    def _tensor(self, values: NDArray[np.float32], like: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(values).to(like.device)
