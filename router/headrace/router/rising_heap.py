"""Finds the least of many members whose keys rise while nobody looks, in logarithmic time."""

from collections.abc import Callable, Hashable
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any, Generic, TypeVar

MemberT = TypeVar("MemberT", bound=Hashable)

_SPARE_COUNT = 64
"""Entries that are never worth sweeping."""


class RisingHeap(Generic[MemberT]):
    """Members by keys that somebody else holds.

    An entry's key is what its member's was, so it is never above what it is
    now: whoever is on top is asked again, and goes down if its key has risen.
    No two members may have the same key, or members have to be comparable.
    """

    __slots__ = ("_entries", "_key", "_sweep_at")

    def __init__(self, key: Callable[[MemberT], Any]) -> None:
        """Takes what tells a member's key, and None of one that is out."""
        self._key = key
        self._entries: list[tuple[Any, MemberT]] = []
        self._sweep_at = _SPARE_COUNT

    def push(self, member: MemberT) -> None:
        """Takes a member in, or notes that its key may have fallen."""
        heappush(self._entries, (self._key(member), member))
        if len(self._entries) >= self._sweep_at:
            self._sweep()

    @property
    def least(self) -> MemberT | None:
        """The member with the lowest key."""
        entries = self._entries
        while entries:
            noted, member = entries[0]
            key = self._key(member)
            if key is None:
                heappop(entries)
            elif key == noted:
                return member
            else:
                heapreplace(entries, (key, member))
        return None

    def clear(self) -> None:
        """Takes every member out."""
        self._entries.clear()
        self._sweep_at = _SPARE_COUNT

    def _sweep(self) -> None:
        """Drops the entries of those that are out, or in twice; seldom enough to cost a push nothing to speak of."""
        keys = ((self._key(member), member) for member in {member for _, member in self._entries})
        self._entries = [(key, member) for key, member in keys if key is not None]
        heapify(self._entries)
        self._sweep_at = max(_SPARE_COUNT, 2 * len(self._entries))
