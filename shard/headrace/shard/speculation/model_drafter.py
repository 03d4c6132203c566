"""Guesses with a smaller model of the same tokens, over a KV cache of its own."""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.contract.clock import Clock
from headrace.kernels.dispatch import Kernels
from headrace.shard.input_batch import InputBatch
from headrace.shard.model_runner import ModelRunner
from headrace.shard.speculation.step_cost import StepCost
from headrace.shard.step_rows import StepRows

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_LAG_LIMIT: Final = 64
"""Tokens of a row that the small model may not have seen: with more, it catches up before it guesses."""
_CATCH_UP_LIMIT: Final = 512
"""Most tokens that it computes in a step to catch up, over all rows."""


class ModelDrafter:
    """A second model that runs ahead of the first, token by token.

    Its KV lies in blocks with the numbers of the first model's, so a row's block
    table is right for both. What it computed of a row is counted apart: it sees a
    row only when it is to guess for it, and computes again from the first token
    that it has not seen drawn, which puts right whatever its guesses left there.
    So a row that it does not help costs it nothing.

    It draws with the row's temperature, top-k and top-p and with the random number
    of each position, the same as the first model will: where both think alike,
    they draw alike. Penalties and constraints it does not know of.
    """

    prior = 0.7
    guesses_freely = False

    def __init__(
        self,
        runner: ModelRunner,
        *,
        kernels: Kernels,
        cost: StepCost,
        clock: Clock,
        context_token_count: int,
        vocabulary_size: int,
    ) -> None:
        """Takes what the small model needs to run, its longest sequence, and the first model's vocabulary."""
        self._runner = runner
        self._kernels = kernels
        self._cost = cost
        self._clock = clock
        self._context_token_count = context_token_count
        self._vocabulary_size = vocabulary_size

    def depth_s(self, row_count: int) -> float:
        """Returns what one more guess for each of so many rows takes."""
        return self._cost.seconds_of(row_count, has_drafts=False)

    def look(self, batch: InputBatch, places: Ints) -> Bools:
        """Returns [row] which fit into the small model's context."""
        fits: Bools = batch.columns.token_counts[places] < self._context_token_count
        return fits

    def prepare(self, batch: InputBatch, places: Ints) -> Bools:
        """Catches up with rows that are far ahead, and returns [row] which are near."""
        columns = batch.columns
        counts = columns.token_counts[places]
        lags = counts - columns.drafts.indexed_counts[places]
        budget = _CATCH_UP_LIMIT
        late: list[int] = []
        chunks: list[int] = []
        for row in (lags > _LAG_LIMIT).nonzero()[0].tolist():
            chunk = min(int(lags[row]) - 1, budget)
            if chunk > 0:
                late.append(row)
                chunks.append(chunk)
                budget -= chunk
        if late:
            self._compute(batch, places[late], np.array(chunks, dtype=np.int64))
        near: Bools = counts - columns.drafts.indexed_counts[places] <= _LAG_LIMIT
        return near

    def propose(self, batch: InputBatch, places: Ints, counts: Ints) -> Ints:
        """Returns [row, depth] what the small model draws."""
        columns = batch.columns
        known = columns.token_counts[places]
        guesses = np.zeros((len(places), int(counts.max())), dtype=np.int64)
        columns.widen("token_ids", int(known.max()) + guesses.shape[1])
        for depth in range(guesses.shape[1]):
            rows = ((counts > depth) & (known + depth <= self._context_token_count)).nonzero()[0]
            if len(rows) == 0:
                break
            going_on = places[rows]
            logits = self._compute(batch, going_on, known[rows] + depth - columns.drafts.indexed_counts[going_on])
            guesses[rows, depth] = self._draw(logits, batch, going_on, known[rows] + depth)
            columns.token_ids[going_on, known[rows] + depth] = guesses[rows, depth]
        # What it computed after the known tokens are its own guesses.
        columns.drafts.indexed_counts[places] = known
        return guesses

    def _compute(self, batch: InputBatch, places: Ints, chunk_counts: Ints) -> torch.Tensor:
        """Computes the next tokens of some rows; returns logits after the last of each."""
        drafts = batch.columns.drafts
        order = np.arange(len(places))
        no = np.zeros(len(places), dtype=np.bool_)
        starts = drafts.indexed_counts[places]
        ends = starts + chunk_counts
        is_one_each = int(chunk_counts.max()) == 1
        step = StepRows(
            row_count=len(places),
            rows=order,
            places=places,
            starts=starts,
            ends=ends,
            longest=int(ends.max()),
            chunk_counts=chunk_counts,
            draft_counts=np.zeros_like(chunk_counts),
            samples=~no,
            pools=no,
            completes=no,
            needs=0,
            endings=frozenset(),
            left=0,
            decodes=is_one_each,
        )
        began_s = self._clock.now()
        inputs = self._runner.prepare(batch.flatten(step), batch.block_tables(step), step.output_indices())
        logits = self._runner.run(inputs).logits
        assert isinstance(logits, torch.Tensor), "they are wanted"
        if is_one_each:
            self._cost.observe(len(places), self._clock.now() - began_s, has_drafts=False)
        drafts.indexed_counts[places] = ends
        return logits

    def _draw(self, logits: torch.Tensor, batch: InputBatch, places: Ints, positions: Ints) -> NDArray[np.int64]:
        columns = batch.columns
        logits = logits[:, : self._vocabulary_size]

        def column(values: NDArray[np.generic]) -> torch.Tensor:
            return torch.from_numpy(values).to(logits.device)

        drawn = self._kernels.sample(
            logits.nan_to_num(),
            temperature=column(columns.temperatures[places]),
            top_k=column(columns.top_ks[places]),
            top_p=column(columns.top_ps[places]),
            seeds=column(columns.seeds[places]),
            positions=column(positions),
        )
        return drawn.cpu().numpy().astype(np.int64)
