"""Lets only one suspect at a time near the shard."""

from headrace.router.sequence import Sequence


class Probation:
    """Who is being probed, and since which step nobody is any more.

    A suspect is in the batch from its admission until it is cleared or leaves.
    If it leaves uncleared, the steps that are unanswered then may still kill the
    shard, so the next suspect has to wait for them.
    """

    __slots__ = ("_last_step_id", "_suspect")

    def __init__(self) -> None:
        self._suspect: Sequence | None = None
        self._last_step_id = 0

    def begin(self, sequence: Sequence) -> None:
        """Notes that a sequence joins the batch. Does nothing unless it is a suspect."""
        if sequence.is_suspect:
            self._suspect = sequence

    def end(self, sequence: Sequence, last_step_id: int) -> None:
        """Notes that a sequence leaves the batch, and the last step that may compute it."""
        if sequence is self._suspect:
            self._suspect = None
            if sequence.is_suspect:
                self._last_step_id = last_step_id

    def is_going_on(self, answered_step_id: int) -> bool:
        """Whether an uncleared suspect is in the batch, or in a step that is unanswered."""
        if self._suspect is not None and self._suspect.is_suspect:
            return True
        return self._last_step_id > answered_step_id
