"""One input between its admission and its vector."""

import asyncio

from headrace.contract.embedding import Embedding
from headrace.contract.errors import HeadraceError, RequestAborted, RowFailed
from headrace.contract.generation import FinishReason, ValidRequest
from headrace.router.admission import Permit
from headrace.router.sequence import Sequence
from headrace.router.sequence_update import SequenceUpdate


class ActiveEmbedding:
    """Waits for the vector of one sequence. Outlives replicas: when one is lost, the input is computed anew."""

    __slots__ = ("_permit", "_sequence", "_started_s", "answer", "request")

    def __init__(self, request: ValidRequest, sequence: Sequence, permit: Permit | None) -> None:
        """Takes the request of one input, which asks for pooling, and the permit of the call."""
        self.request = request
        self.answer: asyncio.Future[Embedding] = asyncio.get_running_loop().create_future()
        """The vector, or why there is none."""
        self._permit = permit
        self._sequence = sequence
        self._started_s: float | None = None

    @property
    def started_s(self) -> float | None:
        """Moment on the clock when its first step was planned; None before."""
        return self._started_s

    @property
    def has_ended(self) -> bool:
        """Whether there is an answer."""
        return self.answer.done()

    @property
    def has_sent_tokens(self) -> bool:
        """Whether the caller may have seen a part of the answer: never, it comes whole."""
        return False

    @property
    def generated_token_count(self) -> int:
        """Generated tokens: none."""
        return 0

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """The one sequence."""
        return (self._sequence,)

    @property
    def open_sequences(self) -> tuple[Sequence, ...]:
        """The one sequence, until there is an answer."""
        return () if self.has_ended else (self._sequence,)

    def start(self, now_s: float) -> None:
        """Notes that the first step was planned."""
        self._started_s = now_s
        if self._permit is not None:
            self._permit.start()

    def advance(self, update: SequenceUpdate, now_s: float) -> bool:
        """Takes the vector, or that there is none. Returns whether there is an answer."""
        if update.vector is not None and not self.has_ended:
            self.answer.set_result(
                Embedding(
                    values=update.vector,
                    token_count=self.request.prompt_token_count,
                    cached_token_count=self._sequence.cached_token_count,
                )
            )
        elif update.error is not None:
            self.fail(RowFailed("the model server failed on this request", metadata={"cause": update.error.reason}))
        return self.has_ended

    def finish(self, reason: FinishReason, now_s: float) -> None:
        """Ends it early. Half a vector is none, so this is an error."""
        self.fail(RequestAborted("the request was aborted"))

    def fail(self, error: HeadraceError) -> None:
        """Ends it with an error; the first end wins."""
        if not self.has_ended:
            self.answer.set_exception(error)
            # The call may have failed for another input already, and then nobody asks.
            self.answer.exception()
