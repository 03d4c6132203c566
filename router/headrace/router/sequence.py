"""One completion in the making: its tokens, its state and its history."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from headrace.contract.errors import ServerError
from headrace.contract.generation import ValidRequest
from headrace.contract.pooling import Pooling


class SequenceState(StrEnum):
    """Where a sequence is."""

    WAITING = "waiting"
    """In the queue, for the first time or again after a preemption or a loss."""
    RUNNING = "running"
    """Has a row in the batch and leases KV blocks."""
    ENDED = "ended"
    """Out of the scheduler for good."""


TRANSITIONS: Final[Mapping[SequenceState, tuple[SequenceState, ...]]] = MappingProxyType(
    {
        SequenceState.WAITING: (SequenceState.RUNNING, SequenceState.ENDED),
        SequenceState.RUNNING: (SequenceState.WAITING, SequenceState.ENDED),
        SequenceState.ENDED: (),
    }
)
"""The states that may follow each state."""


class Sequence:
    """A request's tokens on their way to its end.

    It owns no KV and has no row, so it outlives both: a preemption, a lost
    shard and a move to another replica leave it as it is, with every token that
    came back. All else can be computed again from those.
    """

    __slots__ = (
        "_cleared_at_count",
        "_state",
        "accepted_token_count",
        "admission_count",
        "arrival_s",
        "cached_token_count",
        "drafted_token_count",
        "last_token_s",
        "loss_count",
        "preemption_count",
        "received_s",
        "request",
        "sequence_id",
        "token_ids",
        "unsettled_step_id",
    )

    def __init__(
        self, *, sequence_id: int, request: ValidRequest, arrival_s: float, received_s: float | None = None
    ) -> None:
        self.sequence_id: Final = sequence_id
        """Unique in the process; younger sequences have higher ids."""
        self.request: Final = request
        self.arrival_s: Final = arrival_s
        """When it could run."""
        self.received_s: Final = received_s
        """When its request came, before it was tokenized; None keeps it out of what is measured of waiting."""
        self.token_ids: Final = list(request.prompt_token_ids)
        """The prompt, then every generated token that came back. Grows only."""
        self.cached_token_count = 0
        """Prompt tokens that the prefix cache held when the sequence was first admitted."""
        self.last_token_s: float | None = None
        """When its last token was delivered; for whoever measures, the scheduler has no clock."""
        self.drafted_token_count = 0
        """Tokens that the engine guessed ahead for it."""
        self.accepted_token_count = 0
        """Of these, tokens that it drew."""
        self.admission_count = 0
        self.preemption_count = 0
        self.loss_count = 0
        """Shards in a row that died while they computed it; a loss after it was cleared is a first one again."""
        self.unsettled_step_id = 0
        """The last step that may still bring tokens for it while it waits; 0 if there is none."""
        self._cleared_at_count = 0
        self._state = SequenceState.WAITING

    @property
    def state(self) -> SequenceState:
        """Where it is."""
        return self._state

    @property
    def token_limit(self) -> int:
        """Tokens, prompt included, at which it ends."""
        return self.request.row_stop.token_limit

    @property
    def generated_token_count(self) -> int:
        """Generated tokens that came back."""
        return len(self.token_ids) - self.request.prompt_token_count

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether the prompt's log-probabilities are still to be reported: they are with the first token at last."""
        return self.request.logprobs.prompt and self.generated_token_count == 0

    @property
    def needs_whole_prompt(self) -> bool:
        """Whether every token of the prompt has to be computed, cached or not."""
        pooling = self.request.pooling
        return self.wants_prompt_logprobs or (pooling is not None and pooling.pooling is Pooling.MEAN)

    @property
    def is_suspect(self) -> bool:
        """Whether it may be what the last shard died of.

        It is cleared once it has come past every step that was unanswered then.
        NOTE: its first token clears it only if one step was in flight: with two,
        the fatal step may have been the second, and a sequence cleared by the
        first would kill one shard after another.
        """
        return len(self.token_ids) < self._cleared_at_count

    def become(self, state: SequenceState) -> None:
        """Changes the state.

        Raises:
            ServerError: the table has no such transition; nothing is changed.
        """
        if state not in TRANSITIONS[self._state]:
            raise ServerError(f"sequence {self.sequence_id} cannot go from {self._state} to {state}")
        self._state = state

    def suspect(self, unanswered_token_count: int) -> None:
        """Notes that a shard died in steps that would have brought the sequence at most this many tokens."""
        self.loss_count = self.loss_count + 1 if self.is_suspect else 1
        self._cleared_at_count = len(self.token_ids) + unanswered_token_count

    def __repr__(self) -> str:
        return f"Sequence({self.sequence_id}, {self._state}, {len(self.token_ids)} of {self.token_limit} tokens)"
