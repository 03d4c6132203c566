"""Guesses that a text goes on as it did where its last tokens came before: prompt lookup, on the CPU."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from headrace.shard.growing_columns import GrowingColumns
from headrace.shard.input_batch import InputBatch

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

NGRAM_TOKEN_COUNT: Final = 3
"""Tokens that have to have come before, in this order. Fewer meet by chance, more start to help later."""

_BUCKET_COUNT: Final = 4096
"""Places in a row's table: 16 KiB, in which a text of some thousand tokens finds most of its n-grams again."""
_MULTIPLIERS: Final = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)
"""Odd constants of multiplicative hashing, one for each token of an n-gram."""
_SHIFT: Final = np.uint64(64 - 12)
"""Keeps the upper bits of a sum of products, which depend on all of their factors': as many as number a bucket."""
_DISTANCES: Final = np.arange(1, NGRAM_TOKEN_COUNT + 1)
"""How far before a position the tokens of its n-gram are, the nearest first."""


class NgramDrafter(GrowingColumns):
    """Remembers where each n-gram of a row came last (Saxena, "Prompt Lookup Decoding", 2023).

    A table of fixed size per row, in which a newer n-gram takes the place of an
    older one with its hash: a lookup is one read whatever the length of the text,
    and what is found is compared with the tokens themselves. A row costs the
    same few array operations as a whole batch.

    NOTE: after a forward pass no cache holds what an array operation needs, and each takes several times as long as it
    would in a loop. So few of them are used, and plain ones: `any` and `all` go through Python.
    """

    prior = 0.5
    guesses_freely = True

    def __init__(self) -> None:
        self._buckets = np.zeros((0, _BUCKET_COUNT), dtype=np.int32)
        """[place, bucket] the position after an n-gram; 0 for none."""
        self._last_slots = np.zeros(0, dtype=np.int64)
        """[place] where all buckets in a row have that of the n-gram that was the last one at the last look."""
        self._matches = np.zeros(0, dtype=np.int64)
        """[place] the position after the last n-gram's place in the text; 0 for none."""

    def depth_s(self, _row_count: int) -> float:
        """Returns nothing: copying tokens takes no time beside a model."""
        return 0.0

    def look(self, batch: InputBatch, places: Ints) -> Bools:
        """Takes in the rows' new tokens, and returns [row] whose last n-gram came before."""
        columns = batch.columns
        if len(self._matches) < len(columns.token_counts):
            self.grow_places(len(columns.token_counts))
        counts, indexed = columns.token_counts[places], columns.drafts.indexed_counts[places]
        columns.drafts.indexed_counts[places] = counts
        # What follows the last n-gram is not known yet: its turn comes with the next token.
        slots = self._buckets.reshape(-1)
        is_next = (counts == indexed + 1) & (indexed >= NGRAM_TOKEN_COUNT)
        if np.count_nonzero(is_next) == len(places):
            slots[self._last_slots[places]] = indexed
        else:
            self._index(columns.token_ids, places, indexed, counts)
        # Where a text is too short yet this reads what is not of it, and finds nothing: its buckets are empty.
        owners = places[:, None]
        last = columns.token_ids[owners, counts[:, None] - _DISTANCES]
        last_slots = self._last_slots[places] = places * _BUCKET_COUNT + _buckets_of(last)
        found = slots[last_slots]
        if np.count_nonzero(found) == 0:
            return np.zeros(len(places), dtype=np.bool_)
        found *= (columns.token_ids[owners, found[:, None] - _DISTANCES] == last).all(axis=1)
        self._matches[places] = found
        is_found: Bools = found > 0
        return is_found

    def prepare(self, _batch: InputBatch, places: Ints) -> Bools:
        """Returns all: whatever was looked at can be guessed for."""
        return np.ones(len(places), dtype=np.bool_)

    def propose(self, batch: InputBatch, places: Ints, counts: Ints) -> Ints:
        """Returns [row, depth] what followed last time; over and over, where the text ends before the draft does."""
        starts = self._matches[places]
        periods = batch.columns.token_counts[places] - starts
        positions = starts[:, None] + np.arange(counts.max(initial=0)) % periods[:, None]
        guesses: Ints = batch.columns.token_ids[places[:, None], positions]
        return guesses

    def _index(self, token_ids: Ints, places: Ints, indexed: Ints, counts: Ints) -> None:
        """Takes in any number of new tokens of each row, all of them where none was looked at."""
        self._buckets[places[indexed == 0]] = 0
        firsts = np.maximum(indexed, NGRAM_TOKEN_COUNT)
        added = np.maximum(counts - firsts, 0)
        owners = np.repeat(places, added)
        ends = np.arange(added.sum()) + np.repeat(firsts - (np.cumsum(added) - added), added)
        # Of two with one bucket the later one stays: an assignment goes through its indices in order.
        self._buckets[owners, _buckets_of(token_ids[owners[:, None], ends[:, None] - _DISTANCES])] = ends


def _buckets_of(ngrams: Ints) -> Ints:
    """Returns [ngram] the buckets of n-grams [ngram, token]."""
    mixed: NDArray[np.uint64] = ngrams.astype(np.uint64) @ _MULTIPLIERS
    return (mixed >> _SHIFT).view(np.int64)
