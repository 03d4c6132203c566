"""Keeps sequences in a fixed order while they come and go."""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator

from headrace.router.sequence import Sequence


class SequenceQueue:
    """Sequences in ascending order of a key, the older ones first among equals.

    A sequence's key must never change. NOTE: a sorted list and not a heap: any
    sequence can be removed at once, the order can be walked, and moving a few
    thousand pointers is faster than skipping a heap's dead entries.
    """

    __slots__ = ("_entries", "_key")

    def __init__(self, key: Callable[[Sequence], float]) -> None:
        self._key = key
        self._entries: list[tuple[float, int, Sequence]] = []
        """Ids are unique, so the sequences themselves are never compared."""

    def push(self, sequence: Sequence) -> None:
        """Adds a sequence, wherever its key puts it."""
        insort(self._entries, (self._key(sequence), sequence.sequence_id, sequence))

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out. It must be in."""
        del self._entries[self._index_of(sequence)]

    @property
    def head(self) -> Sequence | None:
        """The first sequence."""
        return self._entries[0][2] if self._entries else None

    def clear(self) -> None:
        """Takes every sequence out."""
        self._entries.clear()

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for _, _, sequence in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _index_of(self, sequence: Sequence) -> int:
        return bisect_left(self._entries, (self._key(sequence), sequence.sequence_id))
