"""What a scheduler tells of itself, as numbers."""

from dataclasses import dataclass, fields, replace
from typing import Final, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStats:
    """A snapshot: gauges say how things are, counters what happened since the start."""

    waiting_count: int = 0
    """Sequences in the queue."""
    waiting_token_count: int = 0
    """Tokens of these when they joined it: prompts and, after a preemption, what was generated."""
    running_count: int = 0
    """Sequences in the batch."""
    in_flight_count: int = 0
    """Steps that are unanswered."""
    leased_block_count: int = 0
    """KV blocks in use by running sequences."""
    cached_block_count: int = 0
    """KV blocks that only the prefix cache keeps; they can be taken at any time."""
    free_block_count: int = 0
    """KV blocks without content."""
    total_block_count: int = 0
    """KV blocks: leased, cached and free."""
    step_count: int = 0
    """Steps planned."""
    row_count: int = 0
    """Rows that computed, over all steps; divided by `step_count` it is the mean batch."""
    computed_token_count: int = 0
    """Tokens planned to be computed, again after a preemption included."""
    prompt_token_count: int = 0
    """Prompt tokens of sequences that were admitted, each counted once."""
    cached_token_count: int = 0
    """Of these, tokens that the prefix cache held."""
    generated_token_count: int = 0
    """Tokens that came back, the last ones of cancelled sequences included."""
    preemption_count: int = 0
    """Times that a sequence gave way for lack of KV blocks."""
    drafted_token_count: int = 0
    """Tokens that the engine guessed ahead and computed."""
    accepted_token_count: int = 0
    """Of these, tokens that it drew."""

    def after(self, past: Self) -> Self:
        """Returns these gauges, and the counters added to those of a predecessor."""
        return replace(self, **{name: getattr(self, name) + getattr(past, name) for name in COUNTER_NAMES})

    def without_gauges(self) -> Self:
        """Returns the counters alone: what is left of a scheduler that is gone."""
        return type(self)(**{name: getattr(self, name) for name in COUNTER_NAMES})


@dataclass(slots=True, kw_only=True)
class SchedulerCounters:
    """The counters of `SchedulerStats`, which says what they count, while they do."""

    step_count: int = 0
    row_count: int = 0
    computed_token_count: int = 0
    prompt_token_count: int = 0
    cached_token_count: int = 0
    generated_token_count: int = 0
    preemption_count: int = 0
    drafted_token_count: int = 0
    accepted_token_count: int = 0

    def snapshot(self, **gauges: int) -> SchedulerStats:
        """Returns the counters as they are, and the given gauges."""
        return SchedulerStats(**gauges, **{name: getattr(self, name) for name in COUNTER_NAMES})


COUNTER_NAMES: Final = tuple(field.name for field in fields(SchedulerCounters))
"""Fields of `SchedulerStats` that only grow."""
