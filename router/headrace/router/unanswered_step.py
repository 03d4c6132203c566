"""What the scheduler remembers of a step between its plan and its result."""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

from headrace.contract.errors import ShardLost
from headrace.contract.step import RowEnd, RowLogprobs, StepResult
from headrace.router.row import Row
from headrace.router.sequence import SequenceState
from headrace.router.sequence_update import SequenceUpdate
from headrace.router.stats import SchedulerCounters


@dataclass(frozen=True, slots=True, kw_only=True)
class UnansweredStep:
    """A step in flight. Its rows are those of its time: some may have left the batch since."""

    step_id: int
    rows: tuple[Row, ...]
    held: Set[Row]
    """Rows that compute nothing."""
    partial: Mapping[Row, int]
    """Rows that stop short of their target, and so sample nothing, with their computed tokens after the step."""
    is_discarded: bool = False
    """Whether nobody waits for its tokens any more."""

    def require_answer(self, result: StepResult) -> None:
        """Checks that a result belongs to this step, before anything of it is believed.

        Raises:
            ShardLost: it does not; what the shard holds is unknown.
        """
        problem = next(self._problems(result), None)
        if problem is not None:
            raise ShardLost(f"step {self.step_id} got an answer that does not fit its plan: {problem}")

    def count_drafts(self, result: StepResult, counters: SchedulerCounters) -> None:
        """Counts what was drafted, and what came of it."""
        for number, drafted_count in zip(result.draft_rows, result.draft_token_counts, strict=True):
            accepted_count = max(0, result.token_counts[number] - 1)
            counters.drafted_token_count += drafted_count
            counters.accepted_token_count += accepted_count
            if not self.is_discarded:
                sequence = self.rows[number].sequence
                sequence.drafted_token_count += drafted_count
                sequence.accepted_token_count += accepted_count

    def receive(self, result: StepResult) -> list[SequenceUpdate]:
        """Hands computed and new tokens to the rows; returns the news in the order of the rows.

        What came back for sequences that ended meanwhile is dropped.
        """
        if self.is_discarded:
            return []
        if self._is_steady(result):
            return self._receive_one_each(result.token_ids)
        failed = {self.rows[error.row] for error in result.errors}
        for row, computed_count in self.partial.items():
            if row not in failed:
                row.note_computed(computed_count)
        ends = dict(zip(result.ended_rows, result.row_ends, strict=True))
        errors = {error.row: error for error in result.errors}
        logprobs: dict[int, tuple[RowLogprobs, ...]] = {}
        for entry in result.logprobs:
            logprobs[entry.row] = (*logprobs.get(entry.row, ()), entry)
        vectors = {vector.row: vector.values for vector in result.vectors}
        ended = SequenceState.ENDED
        updates: list[SequenceUpdate] = []
        offset = 0
        for number, (row, token_count) in enumerate(zip(self.rows, result.token_counts, strict=True)):
            token_ids = result.token_ids[offset : offset + token_count]
            offset += token_count
            if row.sequence.state is ended:
                continue
            if token_ids:
                row.receive(token_ids)
            elif number in vectors:
                row.note_computed(row.sequence.request.prompt_token_count)
            elif number not in errors and number not in logprobs:
                continue
            updates.append(
                SequenceUpdate(
                    row.sequence,
                    token_ids,
                    ends.get(number),
                    errors.get(number),
                    logprobs.get(number, ()),
                    vectors.get(number),
                )
            )
        return updates

    def _is_steady(self, result: StepResult) -> bool:
        """Returns whether there is a token for every row and nothing else to tell, as in nearly all steps."""
        has_more = result.ended_rows or result.errors or result.logprobs or result.vectors
        return len(result.token_ids) == len(self.rows) and 0 not in result.token_counts and not has_more

    def _receive_one_each(self, token_ids: tuple[int, ...]) -> list[SequenceUpdate]:
        ended = SequenceState.ENDED
        updates: list[SequenceUpdate] = []
        # The one loop over all rows that every answer pays for: about 0.4 µs a row. The inner zip makes tuples of one.
        for row, token in zip(self.rows, zip(token_ids, strict=True), strict=True):
            sequence = row.sequence
            if sequence.state is not ended:
                row.receive(token)
                updates.append(SequenceUpdate(sequence, token, None, None, ()))
        return updates

    def _problems(self, result: StepResult) -> Iterator[str]:
        """Yields what is wrong, in words. What follows the first may make no sense."""
        row_count = len(self.rows)
        if result.step_id != self.step_id:
            yield f"it is for step {result.step_id}"
        if len(result.token_counts) != row_count:
            yield f"it has {len(result.token_counts)} rows in place of {row_count}"
        if sum(result.token_counts) != len(result.token_ids) or min(result.token_counts, default=0) < 0:
            yield f"it has {len(result.token_ids)} tokens and counts {result.token_counts}"
        if len(result.ended_rows) != len(result.row_ends):
            yield f"it ends {len(result.ended_rows)} rows for {len(result.row_ends)} reasons"
        if len(result.draft_rows) != len(result.draft_token_counts):
            yield f"{len(result.draft_rows)} rows drafted {len(result.draft_token_counts)} numbers of tokens"
        over = {*result.ended_rows, *(error.row for error in result.errors)}
        if not {*over, *(entry.row for entry in result.logprobs), *result.draft_rows}.issubset(range(row_count)):
            yield f"it names a row that is not among {row_count}"
        yield from self._end_problems(result)
        # A steady batch needs no closer look; and what a discarded step's rows were is not known any more.
        if self.is_discarded or not (self.held or self.partial or 0 in result.token_counts):
            return
        for number, (row, token_count) in enumerate(zip(self.rows, result.token_counts, strict=True)):
            has_sampled = token_count > 0
            must_sample = row not in self.held and row not in self.partial
            is_excused = row.sequence.state is SequenceState.ENDED or (number in over and not has_sampled)
            if has_sampled is not must_sample and not is_excused:
                yield f"row {number} returns {token_count} tokens"

    def _end_problems(self, result: StepResult) -> Iterator[str]:
        pooled: list[int] = []
        for number, end in zip(result.ended_rows, result.row_ends, strict=True):
            if end is RowEnd.POOLED:
                pooled.append(number)
            elif not result.token_counts[number]:
                yield f"row {number} ends without a token"
            if not self.is_discarded and (end is RowEnd.POOLED) is (self.rows[number].sequence.request.pooling is None):
                yield f"row {number} ends with {end.name}"
        if pooled != [vector.row for vector in result.vectors]:
            yield f"it has vectors of {len(result.vectors)} rows, and {len(pooled)} ended with one"
