"""Which tokens a row holds, and how often it generated each: what penalties are computed from."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.shard.growing_columns import GrowingColumns

_FIRST_WIDTH = 64


class TokenTally(GrowingColumns):
    """The distinct tokens of each place that asked for it. Follows from the tokens alone, so it survives any replay.

    NOTE: lists and not a count for every token of the vocabulary: a row holds hundreds of
    different tokens, and a step that has to go through a vocabulary for each row shows in its time.
    """

    def __init__(self, place_count: int) -> None:
        self.token_ids = np.full((place_count, _FIRST_WIDTH), -1, dtype=np.int32)
        """[place, entry] every token of the prompt and the completion once, then -1."""
        self.generated_counts = np.zeros((place_count, _FIRST_WIDTH), dtype=np.int32)
        """[place, entry] how often the completion has it."""
        self._sizes = np.zeros(place_count, dtype=np.int64)

    def fill(self, place: int, token_ids: Sequence[int], prompt_count: int) -> None:
        """Counts a place anew.

        Args:
            place: Which.
            token_ids: The prompt, and what was generated after it.
            prompt_count: How many of them are the prompt.
        """
        distinct, entries = np.unique(np.array(token_ids, dtype=np.int32), return_inverse=True)
        size = len(distinct)
        self._make_room(size)
        self.token_ids[place] = -1
        self.token_ids[place, :size] = distinct
        self.generated_counts[place] = 0
        self.generated_counts[place, :size] = np.bincount(entries[prompt_count:], minlength=size)
        self._sizes[place] = size

    def append(self, places: NDArray[np.int64], token_ids: NDArray[np.int64]) -> None:
        """Counts one more generated token at each place; the places differ."""
        is_known = self.token_ids[places] == token_ids[:, None]
        entries = np.where(is_known.any(axis=1), is_known.argmax(axis=1), self._sizes[places])
        self._make_room(int(entries.max(initial=0)) + 1)
        self.generated_counts[places, entries] = np.where(
            entries < self._sizes[places], self.generated_counts[places, entries] + 1, 1
        )
        self.token_ids[places, entries] = token_ids
        self._sizes[places] = np.maximum(self._sizes[places], entries + 1)

    def _make_room(self, width: int) -> None:
        self.widen("token_ids", width)
        self.widen("generated_counts", width)
