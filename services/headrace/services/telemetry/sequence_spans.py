"""The span of each traced sequence on a shard, from the step that it joined to the one that it ended in."""

import time
from collections import deque
from typing import Final

from opentelemetry.trace import Span, SpanKind

from headrace.contract.errors import ShardLost
from headrace.contract.step import AdmittedSequence, StepPlan, StepResult
from headrace.services.telemetry.spans import TRACE_PARENT, Tracing

SPAN_NAME: Final = "run sequence"


class SequenceSpans:
    """Follows the batch of one Step stream. A sequence that gave way and came back has a span for each time."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._open: dict[int, tuple[Span, float]] = {}
        """By the ids of the sequences in the batch that are traced and have not ended; with when they joined."""
        self._rows: tuple[int, ...] = ()
        """Ids of the batch, in order of the rows."""
        self._unanswered: deque[tuple[int, ...]] = deque()
        """The rows of each step that was planned."""
        self._answered_s = time.monotonic()

    def note_plan(self, plan: StepPlan) -> None:
        """Takes in the next step."""
        if plan.released_sequence_ids or plan.admitted:
            released = set(plan.released_sequence_ids)
            joined = (sequence.sequence_id for sequence in plan.admitted)
            self._rows = (*(row for row in self._rows if row not in released), *joined)
        for sequence_id in plan.released_sequence_ids:
            # The router tells of it with the next plan, which may be long after the last step.
            self._end(sequence_id, self._answered_s)
        for sequence in plan.admitted:
            if sequence.trace_parent:
                self._open[sequence.sequence_id] = self._begin(sequence, plan.step_id), time.monotonic()
        self._unanswered.append(self._rows)

    def note_result(self, result: StepResult) -> None:
        """Takes in the answer of the oldest unanswered step."""
        rows = self._unanswered.popleft()
        self._answered_s = time.monotonic()
        if self._open:
            for error in result.errors:
                self._end(rows[error.row], self._answered_s, error=error.reason)
            for row in result.ended_rows:
                self._end(rows[row], self._answered_s)

    def close(self) -> None:
        """Ends what is left: the router is gone."""
        for sequence_id in list(self._open):
            self._end(sequence_id, self._answered_s, error=ShardLost.reason)

    def _begin(self, sequence: AdmittedSequence, step_id: int) -> Span:
        return self._tracing.begin(
            SPAN_NAME,
            kind=SpanKind.INTERNAL,
            headers={TRACE_PARENT: sequence.trace_parent},
            attributes={
                "headrace.sequence_id": sequence.sequence_id,
                "headrace.first_step_id": step_id,
                "headrace.token_count": len(sequence.token_ids),
                "headrace.computed_token_count": sequence.computed_token_count,
            },
        )

    def _end(self, sequence_id: int, ended_s: float, *, error: str = "") -> None:
        if sequence_id in self._open:
            span, begun_s = self._open.pop(sequence_id)
            self._tracing.end(span, ended_s=max(begun_s, ended_s), error=error)
