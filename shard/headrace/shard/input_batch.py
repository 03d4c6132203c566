"""The batch that lives on the shard: its rows, their columns, and the plans that change them."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from headrace.contract.engine import EngineDescription
from headrace.contract.errors import PlanRejected
from headrace.contract.step import AdmittedSequence, RowEnd, StepPlan
from headrace.shard.adapter_rows import RowAdapters
from headrace.shard.batch_columns import BatchColumns
from headrace.shard.grammar_rows import GrammarRows
from headrace.shard.plan_checks import check_admitted, check_columns

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


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
    """[computing] tokens computed before: the chunk is [start, start + chunk_count)."""
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

    def output_indices(self) -> Ints:
        """Returns the tokens of the step that a draw follows: of each row its last known one, then its guesses."""
        lasts: Ints = np.cumsum(self.chunk_counts)[self.samples] - 1
        if not self.draft_counts.any():
            return lasts
        counts = 1 + self.draft_counts[self.samples]
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        indices: Ints = np.repeat(lasts - counts + 1, counts) + offsets
        return indices

    def further(self, numbers: Ints, places: Ints, starts: Ints) -> "StepRows":
        """Returns rows of this step as if they computed one token more, and drew after it."""
        ones, no = np.ones(len(numbers), dtype=np.int64), np.zeros(len(numbers), dtype=np.bool_)
        return StepRows(
            row_count=self.row_count,
            rows=numbers,
            places=places,
            starts=starts,
            chunk_counts=ones,
            draft_counts=ones - 1,
            samples=~no,
            pools=no,
            completes=no,
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


@dataclass(frozen=True, slots=True, kw_only=True)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOutcomes:
    """What a step did to the rows, in the columns of StepResult."""

    token_counts: tuple[int, ...]
    token_ids: tuple[int, ...]
    ended_rows: tuple[int, ...]
    row_ends: tuple[RowEnd, ...]


class InputBatch:
    """Rows in the order that both sides keep: released ones leave, the others stay in order, admitted ones append.

    A row's data lies at a place in the columns that never changes while the row
    lives, so a release moves row numbers and not token histories. All work per
    step is on whole columns; only admission looks at a sequence by itself.
    """

    def __init__(self, description: EngineDescription, adapters: RowAdapters | None = None) -> None:
        """Starts without rows. Without `adapters`, the description must not say that the engine has any."""
        self._description = description
        self._adapters = adapters
        self.columns = BatchColumns()
        self.grammars = GrammarRows(description.vocabulary_size)
        """What rows are held to."""
        self._places: Ints = np.empty(0, dtype=np.int64)
        self._place_of: dict[int, int] = {}
        self._last_step_id = 0

    @property
    def row_count(self) -> int:
        """Rows in the batch."""
        return len(self._places)

    def clear(self) -> None:
        """Removes every row and every adapter, and forgets the last step id."""
        self.columns.clear()
        if self._adapters is not None:
            self._adapters.clear()
        self._places = np.empty(0, dtype=np.int64)
        self._place_of.clear()
        self._last_step_id = 0

    def apply(self, plan: StepPlan) -> StepRows:
        """Applies a plan's changes and returns what is to be computed.

        Raises:
            PlanRejected: the plan broke the contract.
        """
        if plan.step_id <= self._last_step_id:
            raise PlanRejected(f"step_id {plan.step_id} does not follow {self._last_step_id}")
        self._last_step_id = plan.step_id
        self._release(plan.released_sequence_ids)
        for sequence in plan.admitted:
            self._admit(sequence)
        limit = self._description.row_limit
        if limit and self.row_count > limit:
            raise PlanRejected(f"{self.row_count} rows are more than the limit of {limit}")
        check_columns(plan, row_count=self.row_count, block_count=self._description.block_count)
        self._append_blocks(plan)
        return self._select_rows(plan)

    def add_drafts(self, step: StepRows, drafts: StepDrafts) -> StepRows:
        """Writes guesses after the rows' known tokens, and returns the step that computes them too."""
        columns, places = self.columns, step.places[drafts.indices]
        ends = columns.token_counts[places]
        columns.widen("token_ids", int(ends.max()) + drafts.token_ids.shape[1])
        rows, depths = (np.arange(drafts.token_ids.shape[1]) < drafts.counts[:, None]).nonzero()
        columns.token_ids[places[rows], ends[rows] + depths] = drafts.token_ids[rows, depths]
        draft_counts = step.draft_counts.copy()
        draft_counts[drafts.indices] = drafts.counts
        return replace(step, chunk_counts=step.chunk_counts + draft_counts, draft_counts=draft_counts)

    def flatten(self, step: StepRows) -> FlatTokens:
        """Returns the tokens that a step computes."""
        query_starts = np.zeros(len(step.rows) + 1, dtype=np.int64)
        np.cumsum(step.chunk_counts, out=query_starts[1:])
        places = np.repeat(step.places, step.chunk_counts)
        positions = np.arange(query_starts[-1]) + np.repeat(step.starts - query_starts[:-1], step.chunk_counts)
        block_size = self._description.block_size
        blocks = self.columns.block_tables[places, positions // block_size].astype(np.int64)
        return FlatTokens(
            token_ids=self.columns.token_ids[places, positions].astype(np.int64),
            positions=positions,
            slot_ids=blocks * block_size + positions % block_size,
            query_starts=query_starts,
            context_lengths=step.starts + step.chunk_counts,
        )

    def prompt_targets(self, step: StepRows, flat: FlatTokens) -> PromptTargets | None:
        """Returns the prompt tokens that rows want reported, as far as this step tells; None if there are none.

        The logits of a token tell of the next one: a chunk [start, end) tells of the prompt's [start + 1, end + 1).
        """
        columns = self.columns
        if not columns.reports_prompt[step.places].any():
            return None
        rows = np.repeat(np.arange(len(step.rows)), step.chunk_counts)
        places = step.places[rows]
        wanted = columns.reports_prompt[places] & (flat.positions + 1 < columns.prompt_counts[places])
        indices = wanted.nonzero()[0]
        if len(indices) == 0:
            return None
        return PromptTargets(
            indices=indices,
            token_ids=columns.token_ids[places[indices], flat.positions[indices] + 1].astype(np.int64),
            rows=step.rows[rows[indices]],
            places=places[indices],
        )

    def block_tables(self, step: StepRows) -> NDArray[np.int32]:
        """Returns [computing, block] the block tables, as wide as the longest context needs."""
        contexts = step.starts + step.chunk_counts
        width = -(-int(contexts.max(initial=1)) // self._description.block_size)
        return self.columns.block_tables[step.places, :width]

    def record(self, step: StepRows, token_ids: Ints, failed: Bools) -> RowOutcomes:
        """Takes in what a step computed: rows move on, drawn tokens become known, rows end. Guesses do not count.

        Args:
            step: What `apply` returned.
            token_ids: [sampling] the token drawn for each row that samples.
            failed: [computing] rows that are over because of an error; what was drawn for them is dropped.
        """
        columns = self.columns
        columns.computed_counts[step.places] += step.chunk_counts - step.draft_counts
        columns.is_over[step.places[failed]] = True
        good = ~failed[step.samples]
        rows, places, drawn = step.rows[step.samples][good], step.places[step.samples][good], token_ids[good]
        columns.append_tokens(places, drawn)
        self.grammars.append_tokens(places, drawn)
        ends = self._row_ends(places, drawn)
        ended = ends > 0
        columns.is_over[places[ended]] = True
        token_counts = np.zeros(step.row_count, dtype=np.int64)
        token_counts[rows] = 1
        ended_rows, row_ends = rows[ended], ends[ended]
        if step.completes.any():
            pooled = step.completes & ~failed
            columns.is_over[step.places[pooled]] = True
            ended_rows = np.concatenate((ended_rows, step.rows[pooled]))
            order = ended_rows.argsort()
            row_ends = np.concatenate((row_ends, np.full(pooled.sum(), int(RowEnd.POOLED))))[order]
            ended_rows = ended_rows[order]
        return RowOutcomes(
            token_counts=tuple(token_counts.tolist()),
            token_ids=tuple(drawn.tolist()),
            ended_rows=tuple(ended_rows.tolist()),
            row_ends=tuple(map(RowEnd, row_ends.tolist())),
        )

    def generated_counts(self, places: Ints) -> Ints:
        """Returns how many tokens each row has generated."""
        return self.columns.token_counts[places] - self.columns.prompt_counts[places]

    def last_tokens(self, places: Ints) -> Ints:
        """Returns the last known token of each row."""
        return self.columns.token_ids[places, self.columns.token_counts[places] - 1].astype(np.int64)

    def end_of_sequence_tokens(self, places: Ints) -> tuple[Ints, Ints]:
        """Returns the tokens that end a sequence: indices into `places` and, as long, token ids."""
        endings = self.columns.ending_token_ids[places]
        is_end = (endings >= 0) & (self.columns.ending_kinds[places] == RowEnd.END_OF_SEQUENCE)
        indices, entries = is_end.nonzero()
        return indices, endings[indices, entries].astype(np.int64)

    def barred_endings(self, places: Ints) -> tuple[Ints, Ints]:
        """Returns the tokens that must not be drawn yet, because they would end a row too early.

        Args:
            places: [row]

        Returns:
            Indices into `places` and, as long, token ids.
        """
        columns = self.columns
        early = (self.generated_counts(places) < columns.min_new_counts[places]).nonzero()[0]
        if len(early) == 0:
            return early, early
        endings = columns.ending_token_ids[places[early]]
        indices, entries = (endings >= 0).nonzero()
        return early[indices], endings[indices, entries].astype(np.int64)

    def _release(self, sequence_ids: tuple[int, ...]) -> None:
        if not sequence_ids:
            return
        released = []
        for sequence_id in sequence_ids:
            place = self._place_of.pop(sequence_id, None)
            if place is None:
                raise PlanRejected(f"released sequence {sequence_id} is not in the batch")
            released.append(place)
        self._places = self._places[~np.isin(self._places, released)]
        self.columns.free(released)
        if self._adapters is not None:
            self._adapters.free(released)

    def _admit(self, sequence: AdmittedSequence) -> None:
        if sequence.sequence_id in self._place_of:
            raise PlanRejected(f"admitted sequence {sequence.sequence_id} is in the batch already")
        check_admitted(sequence, self._description)
        if sequence.grammar and not self.grammars.is_loaded:
            raise PlanRejected(f"sequence {sequence.sequence_id}: a grammar needs a vocabulary, and none was loaded")
        if sequence.adapter:
            assert self._adapters is not None, "check_admitted() refuses an adapter"
            self._adapters.check_loaded(sequence.sequence_id, sequence.adapter)
        place = self.columns.take(sequence)
        if self._adapters is not None and sequence.adapter:
            self._adapters.fill(place, sequence.adapter)
        self.grammars.fill(
            place,
            sequence.grammar,
            sequence.token_ids[sequence.prompt_token_count :],
            may_draw_freely=not sequence.sampling.truncates,
        )
        self._place_of[sequence.sequence_id] = place
        self._places = np.append(self._places, place)

    def _append_blocks(self, plan: StepPlan) -> None:
        if not plan.block_rows:
            return
        places = self._places[np.array(plan.block_rows, dtype=np.int64)]
        self.columns.append_blocks(places, np.array(plan.block_counts), np.array(plan.block_ids, dtype=np.int32))

    def _select_rows(self, plan: StepPlan) -> StepRows:
        columns, places = self.columns, self._places
        chunk_counts = np.ones(len(places), dtype=np.int64)
        if plan.chunk_rows:
            chunk_counts[list(plan.chunk_rows)] = plan.chunk_token_counts
        computes = ~columns.is_over[places]
        if plan.held_rows:
            computes[list(plan.held_rows)] = False
        rows = computes.nonzero()[0]
        places, chunk_counts = places[rows], chunk_counts[rows]
        starts = columns.computed_counts[places]
        left = columns.token_counts[places] - starts
        self._check_reach(rows, places, starts, chunk_counts, left)
        reaches, pools = chunk_counts == left, columns.is_pooled[places]
        return StepRows(
            row_count=self.row_count,
            rows=rows,
            places=places,
            starts=starts,
            chunk_counts=chunk_counts,
            draft_counts=np.zeros(len(rows), dtype=np.int64),
            samples=reaches & ~pools,
            pools=pools,
            completes=reaches & pools,
        )

    def _check_reach(self, rows: Ints, places: Ints, starts: Ints, chunk_counts: Ints, left: Ints) -> None:
        if len(far := (chunk_counts > left).nonzero()[0]) > 0:
            row = far[0]
            raise PlanRejected(f"row {rows[row]}: a chunk of {chunk_counts[row]} exceeds the {left[row]} tokens left")
        held = self.columns.block_counts[places] * self._description.block_size
        needed = starts + chunk_counts
        if len(short := (needed > held).nonzero()[0]) > 0:
            row = short[0]
            raise PlanRejected(f"row {rows[row]}: a block table for {held[row]} tokens cannot hold {needed[row]}")
        limit, total = self._description.token_limit, int(chunk_counts.sum())
        if limit and total > limit:
            raise PlanRejected(f"{total} tokens are more than the limit of {limit}")

    def _row_ends(self, places: Ints, drawn: Ints) -> Ints:
        """Returns a RowEnd for each row, 0 for one that goes on."""
        columns = self.columns
        limited = columns.token_counts[places] >= columns.token_limits[places]
        ends = np.where(limited, int(RowEnd.TOKEN_LIMIT), 0)
        hits = columns.ending_token_ids[places] == drawn[:, None]
        if hits.any():
            # End-of-sequence ids come first in the columns, so they win over stop tokens.
            kinds = columns.ending_kinds[places, hits.argmax(axis=1)]
            ends = np.where(hits.any(axis=1), kinds, ends)
        return ends
