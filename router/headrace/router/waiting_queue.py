"""Holds the sequences that wait for a row, the most urgent first."""

from collections.abc import Callable

from headrace.router.sequence import Sequence
from headrace.router.sequence_queue import SequenceQueue


class WaitingQueue(SequenceQueue):
    """The order of admission, and how much work it holds.

    A preempted sequence comes back to the place that it had, since its key is
    the one it had.
    """

    __slots__ = ("_token_counts", "token_count")

    def __init__(self, urgency: Callable[[Sequence], float]) -> None:
        super().__init__(urgency)
        self._token_counts: dict[int, int] = {}
        self.token_count = 0
        """Tokens of all sequences, each counted when it joined the queue."""

    def push(self, sequence: Sequence) -> None:
        """Adds a sequence, wherever its urgency puts it."""
        super().push(sequence)
        self._token_counts[sequence.sequence_id] = len(sequence.token_ids)
        self.token_count += len(sequence.token_ids)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out. It must be in."""
        super().remove(sequence)
        self.token_count -= self._token_counts.pop(sequence.sequence_id)

    def clear(self) -> None:
        """Takes every sequence out."""
        super().clear()
        self._token_counts.clear()
        self.token_count = 0
