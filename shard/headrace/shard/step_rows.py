"""One step of the resident batch: the rows that compute, their tokens, and what came of them."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from headrace.contract.step import RowEnd

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Value = TypeVar("Value", bound=np.generic)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRows:
    """The rows that compute in one step, in row order, and how far."""

    row_count: int
    """All rows of the batch, those that compute nothing included."""
    rows: Ints
    """[computing] row numbers, ascending."""
    places: Ints
    """[computing] where the rows' columns are."""
    starts: Ints
    """[computing] tokens computed before: the chunk is [start, end)."""
    ends: Ints
    """[computing] tokens in the KV cache after this step."""
    longest: int
    """The last of the ends; 0 without a row."""
    chunk_counts: Ints
    """[computing] tokens to compute, >= 1; guesses included."""
    draft_counts: Ints
    """[computing] how many of them are guesses, the last ones."""
    samples: Bools
    """[computing] whether a token is drawn: the chunk reaches the row's last known token, and the row is not pooled."""
    pools: Bools
    """[computing] whether the row is pooled."""
    completes: Bools
    """[computing] whether the chunk reaches the last token of a row that is pooled."""
    needs: int
    """What any of the rows may need, in the bits of BatchColumns.needs."""
    endings: frozenset[int]
    """Every token that ends any of the rows."""
    left: int
    """Tokens after which the first of them reaches its limit; 0 where nobody counted."""
    decodes: bool
    """Whether each row computes its last known token alone, and draws after it."""

    def sampling(self, values: NDArray[Value]) -> NDArray[Value]:
        """Returns those of [computing] values that are of rows that sample."""
        return values if self.decodes else values[self.samples]

    def output_indices(self) -> Ints:
        """Returns the tokens of the step that a draw follows: of each row its last known one, then its guesses."""
        if self.decodes:
            return np.arange(len(self.rows))
        lasts: Ints = np.cumsum(self.chunk_counts)[self.samples] - 1
        if not self.draft_counts.any():
            return lasts
        counts = 1 + self.draft_counts[self.samples]
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        indices: Ints = np.repeat(lasts - counts + 1, counts) + offsets
        return indices

    def following(self) -> "StepRows":
        """Returns the same rows as they compute what they drew in this step, in which all decode and none ends."""
        # Spelled out: after a forward pass `replace` takes as long as several array operations.
        return StepRows(
            row_count=self.row_count,
            rows=self.rows,
            places=self.places,
            starts=self.ends,
            ends=self.ends + 1,
            longest=self.longest + 1,
            chunk_counts=self.chunk_counts,
            draft_counts=self.draft_counts,
            samples=self.samples,
            pools=self.pools,
            completes=self.completes,
            needs=self.needs,
            endings=self.endings,
            left=self.left - 1,
            decodes=True,
        )

    def further(self, numbers: Ints, places: Ints, starts: Ints) -> "StepRows":
        """Returns rows of this step as if they computed one token more, and drew after it."""
        ones, no = np.ones(len(numbers), dtype=np.int64), np.zeros(len(numbers), dtype=np.bool_)
        return StepRows(
            row_count=self.row_count,
            rows=numbers,
            places=places,
            starts=starts,
            ends=starts + 1,
            longest=int(starts.max(initial=-1)) + 1,
            chunk_counts=ones,
            draft_counts=ones - 1,
            samples=~no,
            pools=no,
            completes=no,
            needs=self.needs,
            endings=self.endings,
            left=0,
            decodes=True,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDrafts:
    """What was guessed of the tokens that some rows of a step will draw."""

    indices: Ints
    """[drafting] into the rows of the step, ascending."""
    counts: Ints
    """[drafting] guesses, >= 1."""
    token_ids: Ints
    """[drafting, depth] of which the first `counts` are of meaning."""


@dataclass(slots=True, kw_only=True)
class FlatTokens:
    """The tokens of one step, one row's after another's, without padding."""

    token_ids: Ints
    """[token]"""
    positions: Ints
    """[token] index in its sequence."""
    slot_ids: Ints
    """[token] place in the KV cache: block id * block size + offset."""
    query_starts: Ints
    """[computing + 1] where each row's tokens start."""
    context_lengths: Ints
    """[computing] tokens in the KV cache after this step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTargets:
    """The prompt tokens whose log-probabilities a step brings, one row's after another's."""

    indices: Ints
    """[target] the token of the step, in FlatTokens, that each of them follows."""
    token_ids: Ints
    """[target]"""
    rows: Ints
    """[target] row numbers, ascending."""
    places: Ints
    """[target]"""


@dataclass(slots=True, kw_only=True)
class RowOutcomes:
    """What a step did to the rows, in the columns of StepResult."""

    token_counts: tuple[int, ...]
    token_ids: tuple[int, ...]
    ended_rows: tuple[int, ...]
    row_ends: tuple[RowEnd, ...]
