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
_MULTIPLIERS: Final = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
"""Odd constants of multiplicative hashing, one for each token of an n-gram."""
_SHIFT: Final = np.uint64(64 - 12)
"""Keeps the upper bits of a product, which depend on all of its factors': as many as number a bucket."""


class NgramDrafter(GrowingColumns):
    """Remembers where each n-gram of a row came last (Saxena, "Prompt Lookup Decoding", 2023).

    A table of fixed size per row, in which a newer n-gram takes the place of an
    older one with its hash: a lookup is one read whatever the length of the text,
    and what is found is compared with the tokens themselves. A row costs the
    same few array operations as a whole batch.
    """

    prior = 0.5
    guesses_freely = True

    def __init__(self) -> None:
        self._buckets = np.zeros((0, _BUCKET_COUNT), dtype=np.int32)
        """[place, bucket] the position after an n-gram; 0 for none."""
        self._matches = np.zeros(0, dtype=np.int64)
        """[place] the position after the last n-gram's place in the text; 0 for none."""

    def depth_s(self, _row_count: int) -> float:
        """Returns nothing: copying tokens takes no time beside a model."""
        return 0.0

    def look(self, batch: InputBatch, places: Ints) -> Bools:
        """Takes in the rows' new tokens, and returns [row] whose last n-gram came before."""
        columns = batch.columns
        self.grow_places(len(columns.token_counts))
        counts, indexed = columns.token_counts[places], columns.drafts.indexed_counts[places]
        self._buckets[places[indexed == 0]] = 0
        # What follows the last n-gram is not known yet: its turn comes with the next token.
        firsts = np.maximum(indexed, NGRAM_TOKEN_COUNT)
        added = np.maximum(counts - firsts, 0)
        owners = np.repeat(places, added)
        ends = np.arange(added.sum()) + np.repeat(firsts - (np.cumsum(added) - added), added)
        columns.drafts.indexed_counts[places] = np.maximum(counts, 1)
        if len(ends) > 0:
            # Of two with one bucket the later one stays: an assignment goes through its indices in order.
            self._buckets[owners, _buckets_of(columns.token_ids, owners, ends)] = ends
        found = np.zeros(len(places), dtype=np.int64)
        long = (counts >= NGRAM_TOKEN_COUNT).nonzero()[0]
        if len(long) > 0:
            where, ends = places[long], counts[long]
            found[long] = self._buckets[where, _buckets_of(columns.token_ids, where, ends)]
            found[long] *= _are_equal(columns.token_ids, where, found[long], ends)
        self._matches[places] = found
        return found > 0

    def prepare(self, _batch: InputBatch, places: Ints) -> Bools:
        """Returns all: whatever was looked at can be guessed for."""
        return np.ones(len(places), dtype=np.bool_)

    def propose(self, batch: InputBatch, places: Ints, counts: Ints) -> Ints:
        """Returns [row, depth] what followed last time; over and over, where the text ends before the draft does."""
        starts = self._matches[places]
        periods = batch.columns.token_counts[places] - starts
        positions = starts[:, None] + np.arange(counts.max(initial=0)) % periods[:, None]
        guesses: Ints = batch.columns.token_ids[places[:, None], positions].astype(np.int64)
        return guesses


def _buckets_of(token_ids: NDArray[np.int32], places: Ints, ends: Ints) -> Ints:
    """Returns the bucket of the n-gram that ends before each position."""
    mixed = np.zeros(len(ends), dtype=np.uint64)
    for distance, multiplier in enumerate(_MULTIPLIERS, start=1):
        mixed ^= token_ids[places, ends - distance].astype(np.uint64) * np.uint64(multiplier)
        mixed *= np.uint64(_MULTIPLIERS[0])
    return (mixed >> _SHIFT).astype(np.int64)


def _are_equal(token_ids: NDArray[np.int32], places: Ints, ends: Ints, other_ends: Ints) -> Bools:
    """Returns whether the n-grams before two positions of each row are the same; false where there is none."""
    equal = ends >= NGRAM_TOKEN_COUNT
    for distance in range(1, NGRAM_TOKEN_COUNT + 1):
        equal &= token_ids[places, ends - distance] == token_ids[places, other_ends - distance]
    return equal
