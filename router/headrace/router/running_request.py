"""What the step loop and the replicas need of a request, whatever is made of its tokens."""

from typing import Protocol

from headrace.contract.errors import HeadraceError
from headrace.contract.generation import FinishReason, ValidRequest
from headrace.router.sequence import Sequence
from headrace.router.sequence_update import SequenceUpdate


class RunningRequest(Protocol):
    """A request between its admission and its end. Outlives replicas."""

    request: ValidRequest

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        ...

    @property
    def has_sent_tokens(self) -> bool:
        """Whether the caller may have seen a part of the answer."""
        ...

    @property
    def generated_token_count(self) -> int:
        """Generated tokens over all sequences."""
        ...

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """All its sequences. They have the same prompt."""
        ...

    @property
    def open_sequences(self) -> tuple[Sequence, ...]:
        """Those that go on."""
        ...

    def start(self, now_s: float) -> None:
        """Notes that the first step of a sequence was planned. Called once for each, replays left out."""
        ...

    def advance(self, update: SequenceUpdate, now_s: float) -> bool:
        """Takes the news of a sequence. Returns whether it is over; `has_ended` tells of the request."""
        ...

    def finish(self, reason: FinishReason, now_s: float) -> None:
        """Ends the request early, with what there is."""
        ...

    def fail(self, error: HeadraceError) -> None:
        """Ends the request with an error."""
        ...
