"""Makes vectors of hidden states, whose chunks arrive step by step."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.contract.pooling import Pooling, PoolingOptions
from headrace.contract.step import RowError, RowVector
from headrace.shard.batch_columns import BatchColumns
from headrace.shard.step_rows import FlatTokens, StepRows

_NOT_FINITE = "HIDDEN_STATE_NOT_FINITE"

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledTokens:
    """The tokens of a step whose hidden states are wanted."""

    indices: Ints
    """[wanted] into the step's flat tokens, one row's after another's."""
    counts: Ints
    """[pooled row] how many of them are each row's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """What was pooled in one step."""

    vectors: tuple[RowVector, ...]
    failed: NDArray[np.bool_]
    """[computing]"""
    errors: tuple[RowError, ...]


class Pooler:
    """Keeps the sums of rows whose mean is wanted, from their first chunk to their last.

    They are kept in float64, so that where a prompt was cut into chunks does not
    show in the vector.
    """

    def __init__(self) -> None:
        self._sums: dict[int, NDArray[np.float64]] = {}
        """By place; a row that is admitted where another was released begins anew."""

    def select(self, step: StepRows, flat: FlatTokens, columns: BatchColumns) -> PooledTokens:
        """Returns the tokens to look at: of a mean every token of the chunk, else the chunk's last."""
        is_mean = np.array([_is_mean(columns, place) for place in step.places[step.pools].tolist()], dtype=np.bool_)
        ends = flat.query_starts[1:][step.pools]
        counts = np.where(is_mean, step.chunk_counts[step.pools], 1)
        firsts = np.repeat(ends - counts.cumsum(), counts)
        return PooledTokens(indices=firsts + np.arange(counts.sum()), counts=counts)

    def pool(self, step: StepRows, columns: BatchColumns, sums: NDArray[np.float64]) -> Pooled:
        """Takes what a step computed for the rows that are pooled, and returns the vectors of those that are complete.

        Args:
            step: The rows of the step.
            columns: The resident batch.
            sums: [pooled row, hidden] the sum over the tokens that `select` named.
        """
        vectors: list[RowVector] = []
        failed = np.zeros(len(step.rows), dtype=np.bool_)
        for number, index in enumerate(step.pools.nonzero()[0].tolist()):
            place, total = int(step.places[index]), sums[number]
            if _is_mean(columns, place) and step.starts[index] > 0:
                total = self._sums[place] + total
            if not step.completes[index]:
                self._sums[place] = total
                continue
            self._sums.pop(place, None)
            token_count = int(columns.token_counts[place]) if _is_mean(columns, place) else 1
            if np.isfinite(total).all():
                values = make_vector(total / token_count, columns.poolings[place])
                vectors.append(RowVector(int(step.rows[index]), values))
            else:
                failed[index] = True
        detail = "the model computed a hidden state that is not a finite number"
        errors = tuple(RowError(row, _NOT_FINITE, detail) for row in step.rows[failed].tolist())
        return Pooled(vectors=tuple(vectors), failed=failed, errors=errors)


def make_vector(pooled: NDArray[np.float64], options: PoolingOptions) -> bytes:
    """Returns pooled hidden states as they go to the router: cut and scaled as asked, in float32, little-endian."""
    kept = pooled[: options.dimension_count or None]
    if options.is_normalized:
        kept = kept / (np.linalg.norm(kept) or 1.0)
    return kept.astype("<f4").tobytes()


def _is_mean(columns: BatchColumns, place: int) -> bool:
    return columns.poolings[place].pooling is Pooling.MEAN
