"""A plan in the making: everything in which it differs from one token for every row."""

from dataclasses import replace

from headrace.contract.step import AdmittedSequence, StepPlan
from headrace.router.row import Row
from headrace.router.unanswered_step import UnansweredStep


class StepDraft:
    """Collects decisions by row; row numbers are known only once nobody leaves or joins any more.

    A steady decoding batch leaves nearly no trace here: a row that computes one
    token is mentioned only if it also needs a block.
    """

    __slots__ = ("_added_blocks", "_admitted", "_chunks", "_held", "_partial", "has_preempted", "token_budget")

    def __init__(self, token_budget: int) -> None:
        self.token_budget = token_budget
        """Tokens that may still be given to rows."""
        self.has_preempted = False
        """Whether a row gave way in this plan."""
        self._added_blocks: dict[Row, list[int]] = {}
        self._chunks: dict[Row, int] = {}
        self._held: dict[Row, None] = {}
        self._partial: dict[Row, int] = {}
        self._admitted: dict[Row, AdmittedSequence] = {}

    @property
    def admitted_rows(self) -> tuple[Row, ...]:
        """The rows that join, in order."""
        return tuple(self._admitted)

    @property
    def held_count(self) -> int:
        """Rows that compute nothing."""
        return len(self._held)

    def compute(self, row: Row, token_count: int) -> None:
        """Gives a row tokens of the budget; none holds it."""
        if token_count == 0:
            self._held[row] = None
            return
        self.token_budget -= token_count
        if token_count != 1:
            self._chunks[row] = token_count
        if token_count < row.remaining_count:
            self._partial[row] = row.scheduled_count + token_count
        row.schedule(token_count)

    def add_blocks(self, row: Row, block_ids: list[int]) -> None:
        """Announces that a row's table grew."""
        self._added_blocks[row] = block_ids

    def admit(self, row: Row) -> None:
        """Lets a row join, before any of its tokens is scheduled."""
        sequence = row.sequence
        request = sequence.request
        self._admitted[row] = AdmittedSequence(
            sequence_id=sequence.sequence_id,
            token_ids=tuple(sequence.token_ids),
            prompt_token_count=request.prompt_token_count,
            computed_token_count=row.scheduled_count,
            block_ids=tuple(row.table.block_ids),
            sampling=request.sampling,
            stopping=request.row_stop,
            logprobs=replace(request.logprobs, prompt=sequence.wants_prompt_logprobs),
            grammar=request.grammar,
            adapter=request.adapter,
            pooling=request.pooling,
            may_draft=row.spare_count > 0,
            trace_parent=request.trace_parent,
        )

    def drop(self, row: Row) -> None:
        """Forgets a row that was preempted after it was given a block in this plan."""
        self.has_preempted = True
        self._added_blocks.pop(row, None)

    def plan(self, step_id: int, released_sequence_ids: tuple[int, ...]) -> StepPlan:
        """Returns the plan. The rows' numbers must be those of this step."""
        grown = sorted(self._added_blocks, key=_number)
        chunked = sorted(self._chunks, key=_number)
        return StepPlan(
            step_id=step_id,
            released_sequence_ids=released_sequence_ids,
            admitted=tuple(self._admitted.values()),
            block_rows=tuple(map(_number, grown)),
            block_counts=tuple(len(self._added_blocks[row]) for row in grown),
            block_ids=tuple(block_id for row in grown for block_id in self._added_blocks[row]),
            chunk_rows=tuple(map(_number, chunked)),
            chunk_token_counts=tuple(self._chunks[row] for row in chunked),
            held_rows=tuple(sorted(map(_number, self._held))),
        )

    def unanswered_step(self, step_id: int, rows: tuple[Row, ...]) -> UnansweredStep:
        """Returns what has to be remembered of the plan until its result is here."""
        return UnansweredStep(step_id=step_id, rows=rows, held=self._held.keys(), partial=self._partial)


def _number(row: Row) -> int:
    return row.number
