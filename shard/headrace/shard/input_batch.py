"""The batch that lives on the shard: its rows, their columns, and the plans that change them."""

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from headrace.contract.engine import EngineDescription
from headrace.contract.errors import PlanRejected
from headrace.contract.step import AdmittedSequence, RowEnd, StepPlan
from headrace.shard.adapter_rows import RowAdapters
from headrace.shard.batch_columns import CHANGES, POOLS, REPORTS_PROMPT, BatchColumns
from headrace.shard.grammar_rows import GrammarRows
from headrace.shard.growing_columns import cells_of, fill_cells
from headrace.shard.plan_checks import check_admitted, check_columns
from headrace.shard.step_rows import FlatTokens, PromptTargets, RowOutcomes, StepDrafts, StepRows

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_MANY: Final = np.iinfo(np.int64).max
_NONE: Final[Ints] = np.empty(0, dtype=np.int64)


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
        self._tables: NDArray[np.int32] | None = None
        """The block tables of the rows at `_tabled_places`, until one of them grows."""
        self._tabled_places: Ints | None = None
        self._applied: StepRows | None = None
        """What the last plan came to, if the next step may be like it."""
        self._repeatable: StepRows | None = None
        """The last step, if the next one computes the same rows unless its plan says otherwise."""
        self._room = 0
        """Steps of these rows for which their blocks surely have room."""

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
        self._repeatable = None

    def apply(self, plan: StepPlan) -> StepRows:
        """Applies a plan's changes and returns what is to be computed.

        Raises:
            PlanRejected: the plan broke the contract.
        """
        if plan.step_id <= self._last_step_id:
            raise PlanRejected(f"step_id {plan.step_id} does not follow {self._last_step_id}")
        self._last_step_id = plan.step_id
        last, self._repeatable = self._repeatable, None
        self._release(plan.released_sequence_ids)
        for sequence in plan.admitted:
            self._admit(sequence)
        limit = self._description.row_limit
        if limit and self.row_count > limit:
            raise PlanRejected(f"{self.row_count} rows are more than the limit of {limit}")
        check_columns(plan, row_count=self.row_count, block_count=self._description.block_count)
        self._append_blocks(plan)
        is_other = plan.released_sequence_ids or plan.admitted or plan.chunk_rows or plan.held_rows
        self._room -= 1
        if last is None or is_other:
            step = self._select_rows(plan)
            self._check_room(step)
        else:
            step = last.following()
            if self._room < 0:
                self._check_room(step)
        # Rows that were held go on.
        self._applied = step if step.decodes and not plan.held_rows else None
        return step

    def add_drafts(self, step: StepRows, drafts: StepDrafts) -> StepRows:
        """Writes guesses after the rows' known tokens, and returns the step that computes them too."""
        columns, places = self.columns, step.places[drafts.indices]
        ends = columns.token_counts[places]
        columns.widen("token_ids", int(ends.max()) + drafts.token_ids.shape[1])
        rows, depths = (np.arange(drafts.token_ids.shape[1]) < drafts.counts[:, None]).nonzero()
        fill_cells(columns.token_ids, places[rows], ends[rows] + depths, drafts.token_ids[rows, depths])
        draft_counts = step.draft_counts.copy()
        draft_counts[drafts.indices] = drafts.counts
        longer = step.ends + draft_counts
        return replace(
            step,
            ends=longer,
            longest=int(longer.max()),
            chunk_counts=step.chunk_counts + draft_counts,
            draft_counts=draft_counts,
            decodes=False,
        )

    def flatten(self, step: StepRows) -> FlatTokens:
        """Returns the tokens that a step computes."""
        if step.decodes:
            query_starts = np.arange(len(step.rows) + 1)
            places, positions = step.places, step.starts
        else:
            query_starts = np.zeros(len(step.rows) + 1, dtype=np.int64)
            np.cumsum(step.chunk_counts, out=query_starts[1:])
            places = np.repeat(step.places, step.chunk_counts)
            positions = np.arange(query_starts[-1]) + np.repeat(step.starts - query_starts[:-1], step.chunk_counts)
        block_size = self._description.block_size
        blocks = positions // block_size
        # How far a block is from where it would be if the row's lay in order: numpy's remainder takes longer.
        shifts = cells_of(self.columns.block_tables, places, blocks) - blocks
        return FlatTokens(
            token_ids=cells_of(self.columns.token_ids, places, positions),
            positions=positions,
            slot_ids=positions + shifts * block_size,
            query_starts=query_starts,
            context_lengths=step.ends,
        )

    def prompt_targets(self, step: StepRows, flat: FlatTokens) -> PromptTargets | None:
        """Returns the prompt tokens that rows want reported, as far as this step tells; None if there are none.

        The logits of a token tell of the next one: a chunk [start, end) tells of the prompt's [start + 1, end + 1).
        """
        columns = self.columns
        if not step.needs & REPORTS_PROMPT:
            return None
        rows = np.repeat(np.arange(len(step.rows)), step.chunk_counts)
        places = step.places[rows]
        wanted = columns.reports_prompt[places] & (flat.positions + 1 < columns.prompt_counts[places])
        indices = wanted.nonzero()[0]
        if len(indices) == 0:
            return None
        return PromptTargets(
            indices=indices,
            token_ids=columns.token_ids[places[indices], flat.positions[indices] + 1],
            rows=step.rows[rows[indices]],
            places=places[indices],
        )

    def block_tables(self, step: StepRows) -> NDArray[np.int32]:
        """Returns [computing, block] the block tables, at least as wide as the longest context needs."""
        width = -(-max(step.longest, 1) // self._description.block_size)
        tables = self._tables
        if tables is None or step.places is not self._tabled_places or tables.shape[1] < width:
            tables = self.columns.block_tables[step.places, :width].astype(np.int32)
            self._tables, self._tabled_places = tables, step.places
        return tables

    def record(self, step: StepRows, token_ids: Ints, failed: Bools | None = None) -> RowOutcomes:
        """Takes in what a step computed: rows move on, drawn tokens become known, rows end. Guesses do not count.

        Args:
            step: What `apply` returned.
            token_ids: [sampling] the token drawn for each row that samples.
            failed: [computing] rows that are over because of an error; what was drawn for them is dropped. None if
                none is.
        """
        columns = self.columns
        computed = step.ends if step.decodes else step.ends - step.draft_counts
        columns.computed_counts[step.places] = computed
        rows, places, known = step.sampling(step.rows), step.sampling(step.places), step.sampling(computed)
        if failed is not None:
            columns.is_over[step.places[failed]] = True
            good = ~step.sampling(failed)
            rows, places, known, token_ids = rows[good], places[good], known[good], token_ids[good]
        columns.append_tokens(places, known, token_ids)
        if step.needs & CHANGES:
            columns.processors.append_tokens(places, token_ids)
            self.grammars.append_tokens(places, token_ids)
        drawn = token_ids.tolist()
        ended_rows, kinds = _NONE, _NONE
        if step.left <= 1 or not step.endings.isdisjoint(drawn):
            ended, kinds = self._find_ends(places, known + 1, token_ids)
            ended_rows = rows[ended]
        if step is self._applied and failed is None and len(ended_rows) == 0:
            self._repeatable = step
        if step.needs & POOLS and step.completes.any():
            pooled = step.completes if failed is None else step.completes & ~failed
            columns.is_over[step.places[pooled]] = True
            ended_rows = np.concatenate((ended_rows, step.rows[pooled]))
            order = ended_rows.argsort()
            kinds = np.concatenate((kinds, np.full(pooled.sum(), int(RowEnd.POOLED))))[order]
            ended_rows = ended_rows[order]
        return RowOutcomes(
            token_counts=_marks(rows, step.row_count),
            token_ids=tuple(drawn),
            ended_rows=tuple(ended_rows.tolist()),
            row_ends=tuple(map(RowEnd, kinds.tolist())),
        )

    def generated_counts(self, places: Ints) -> Ints:
        """Returns how many tokens each row has generated."""
        return self.columns.token_counts[places] - self.columns.prompt_counts[places]

    def last_tokens(self, places: Ints) -> Ints:
        """Returns the last known token of each row."""
        return cells_of(self.columns.token_ids, places, self.columns.token_counts[places] - 1)

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
        self.columns.append_blocks(places, np.array(plan.block_counts), np.array(plan.block_ids, dtype=np.int64))
        self._tables = None

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
        ends = starts + chunk_counts
        total = int(chunk_counts.sum())
        if len(far := (chunk_counts > left).nonzero()[0]) > 0:
            row = far[0]
            raise PlanRejected(f"row {rows[row]}: a chunk of {chunk_counts[row]} exceeds the {left[row]} tokens left")
        limit = self._description.token_limit
        if limit and total > limit:
            raise PlanRejected(f"{total} tokens are more than the limit of {limit}")
        reaches, pools = chunk_counts == left, columns.is_pooled[places]
        samples = reaches & ~pools
        return StepRows(
            row_count=self.row_count,
            rows=rows,
            places=places,
            starts=starts,
            ends=ends,
            longest=int(ends.max(initial=0)),
            chunk_counts=chunk_counts,
            draft_counts=np.zeros(len(rows), dtype=np.int64),
            samples=samples,
            pools=pools,
            completes=reaches & pools,
            needs=columns.needs_of(places),
            endings=frozenset(columns.ending_token_ids[places].ravel().tolist()),
            left=int((columns.token_limits[places] - columns.token_counts[places]).min(initial=_MANY)),
            decodes=0 < total == len(rows) and bool(samples.all()),
        )

    def _check_room(self, step: StepRows) -> None:
        held = self.columns.block_counts[step.places] * self._description.block_size
        room = held - step.ends
        self._room = int(room.min(initial=_MANY))
        if self._room < 0:
            row = (room < 0).nonzero()[0][0]
            raise PlanRejected(
                f"row {step.rows[row]}: a block table for {held[row]} tokens cannot hold {step.ends[row]}"
            )

    def _find_ends(self, places: Ints, known: Ints, drawn: Ints) -> tuple[Ints, Ints]:
        """Ends rows that a token was drawn for.

        Args:
            places: [row]
            known: [row] tokens that it has now.
            drawn: [row] the last of them.

        Returns:
            Which rows end, ascending, and as long, the RowEnd of each.
        """
        columns = self.columns
        is_over = known >= columns.token_limits[places]
        hits = columns.ending_token_ids[places] == drawn[:, None]
        # End-of-sequence ids come first in the columns, so they win over stop tokens.
        kinds = columns.ending_kinds[places, hits.argmax(axis=1)]
        kinds = np.where(hits.any(axis=1), kinds, np.where(is_over, int(RowEnd.TOKEN_LIMIT), 0))
        ended = kinds.nonzero()[0]
        columns.is_over[places[ended]] = True
        return ended, kinds[ended]


def _marks(rows: Ints, row_count: int) -> tuple[int, ...]:
    """Returns 1 for each of some rows, 0 for the others."""
    if len(rows) == row_count:
        return (1,) * row_count
    marks = np.zeros(row_count, dtype=np.int64)
    marks[rows] = 1
    return tuple(marks.tolist())
