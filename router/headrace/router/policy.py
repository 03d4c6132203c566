"""The scheduler's judgements, as functions: who goes first, who gives way, and how much each gets."""

from collections.abc import Iterable
from dataclasses import dataclass

from headrace.contract.errors import FieldViolation, InvalidRequest, StartupError
from headrace.contract.generation import ValidRequest
from headrace.router.row import Row
from headrace.router.sequence import Sequence

LONE_CHUNK_FACTOR = 2
"""How many chunks' tokens a prompt computes in one step while it is the only one.

Products of more tokens take less time for each: 7 % less at 1,024 than at 512, and no less beyond
(docs/performance.md). Whoever comes meanwhile waits for the steps in flight, so it is not more.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """What an engine and its operator allow."""

    block_size: int
    """Tokens per KV block."""
    block_count: int
    """KV blocks."""
    step_token_limit: int
    """Most tokens computed in one step."""
    step_row_limit: int
    """Most sequences in the batch."""
    steps_in_flight: int = 1
    """Steps that may be unanswered."""
    prefill_chunk_token_limit: int | None = None
    """Most tokens of one sequence computed in one step beside others; None sets no limit but the step's."""
    draft_token_limit: int = 0
    """Most tokens that a row draws in a step beyond the first."""
    priority_head_start_s: float = 0.0
    """How much earlier each level of priority lets a request seem to have arrived."""

    def __post_init__(self) -> None:
        for name in ("block_size", "block_count", "step_token_limit", "step_row_limit", "steps_in_flight"):
            if getattr(self, name) < 1:
                raise StartupError(f"{name}: {getattr(self, name)} is below 1")
        if self.prefill_chunk_token_limit is not None and self.prefill_chunk_token_limit < 1:
            raise StartupError(f"prefill_chunk_token_limit: {self.prefill_chunk_token_limit} is below 1")
        if self.priority_head_start_s < 0:
            raise StartupError(f"priority_head_start_s: {self.priority_head_start_s:g} is negative")

    @property
    def running_limit(self) -> int:
        """Most running sequences: with more rows than tokens, some could not even decode."""
        return min(self.step_row_limit, self.step_token_limit)

    @property
    def slot_count(self) -> int:
        """Tokens whose KV fits into all blocks."""
        return self.block_size * self.block_count


def urgency(sequence: Sequence, limits: SchedulerLimits) -> float:
    """Returns the key of the one order that all decisions follow: the lower, the more urgent.

    A priority is a head start: so a waiting request ages for free, since
    whatever arrives later than its head start comes after it, and the order of
    two requests never changes.
    """
    return sequence.arrival_s - sequence.request.priority * limits.priority_head_start_s


def require_fit(sequence: Sequence, limits: SchedulerLimits) -> None:
    """Refuses what could not run to its end even with every block to itself.

    The last token is sampled and never computed, so it needs no slot.

    Raises:
        InvalidRequest: the sequence may need more KV than there is, or has no token left to generate.
    """
    token_count = len(sequence.token_ids)
    if token_count >= sequence.token_limit:
        description = f"leaves nothing to generate: {token_count} tokens of at most {sequence.token_limit}"
        raise InvalidRequest([FieldViolation("prompt", description)])
    if token_count > limits.slot_count:
        description = f"has {token_count} tokens; the model server has KV memory for {limits.slot_count}"
        raise InvalidRequest([FieldViolation("prompt", description)])
    if sequence.token_limit - 1 > limits.slot_count:
        prompt_token_count = sequence.request.prompt_token_count
        description = (
            f"{sequence.token_limit - prompt_token_count} after a prompt of {prompt_token_count} tokens"
            f" may need more KV memory than the model server has, {limits.slot_count} tokens;"
            f" at most {limits.slot_count + 1 - prompt_token_count} can be generated"
        )
        raise InvalidRequest([FieldViolation("stopping.max_new_token_count", description)])


def choose_victim(rows: Iterable[Row], limits: SchedulerLimits) -> Row:
    """Returns the row to preempt: the least urgent, the youngest among equals.

    So a sequence that needs memory never takes it from one that comes before
    it; it may have to give way itself. The most urgent one is never chosen for
    another, and since it was not refused it fits, so it always reaches its end,
    and after it the next: there is no livelock.
    """
    return max(rows, key=lambda row: (urgency(row.sequence, limits), row.sequence.sequence_id))


def choose_chunk(row: Row, token_budget: int, limits: SchedulerLimits, *, is_alone: bool) -> int:
    """Returns how many tokens a row computes in a step with this many to give away; 0 if it has to wait."""
    chunk_limit = limits.prefill_chunk_token_limit
    count = min(row.remaining_count, token_budget)
    if chunk_limit is None:
        return count
    return min(count, LONE_CHUNK_FACTOR * chunk_limit if is_alone else chunk_limit)


def spare_slots(request: ValidRequest, limits: SchedulerLimits) -> int:
    """Returns with how many slots beyond its next token's a row can draft as much as it likes; 0 if it may not.

    Each step in flight may have taken all the drafts that it can, and leaves a
    slot for each plan that was made before its answer.
    """
    if limits.draft_token_limit == 0 or not request.may_draft or request.pooling is not None:
        return 0
    return limits.steps_in_flight * limits.draft_token_limit + limits.steps_in_flight - 1


def growth_reserve(rows: Iterable[Row]) -> int:
    """Returns how many blocks an admission has to leave: one for each running sequence that may still need one.

    Without it, memory would be full at once, and the first to grow would throw
    out the one that just came in, again and again.
    """
    return sum(row.may_grow for row in rows)
