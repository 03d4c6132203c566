"""Hands out KV blocks and counts who holds them."""

from collections import Counter
from collections.abc import Iterable

from headrace.router.prefix_cache import PrefixCache


class BlockPool:
    """Every KV block of a replica, ids [0, block_count), each in exactly one of three states.

    | state  | is                                   | becomes                                             |
    |--------|--------------------------------------|-----------------------------------------------------|
    | free   | without content                      | leased by `take`                                    |
    | leased | in the table of a running sequence   | by the last `give_back` cached if indexed, or free  |
    | cached | indexed by the prefix cache, unused  | leased by `share` or by `take` (evicted), free by `flush` |

    A leased block has as many references as sequences have it in their tables.
    """

    __slots__ = ("_cache", "_free", "_reference_counts")

    def __init__(self, block_count: int, cache: PrefixCache) -> None:
        self._cache = cache
        self._free = list(range(block_count - 1, -1, -1))
        """Taken from the end: the lowest ids first, then what was used last."""
        self._reference_counts = [0] * block_count

    @property
    def total_count(self) -> int:
        """All blocks."""
        return len(self._reference_counts)

    @property
    def free_count(self) -> int:
        """Blocks without content."""
        return len(self._free)

    @property
    def cached_count(self) -> int:
        """Blocks that only the prefix cache keeps."""
        return self._cache.idle_count

    @property
    def leased_count(self) -> int:
        """Blocks in the table of at least one sequence."""
        return self.total_count - self.free_count - self.cached_count

    @property
    def available_count(self) -> int:
        """Blocks that `take` can hand out."""
        return self.free_count + self.cached_count

    def can_lease(self, shared_block_ids: Iterable[int], taken_count: int) -> bool:
        """Whether these blocks can be shared and this many others be taken after that."""
        woken_count = sum(map(self._cache.is_idle, shared_block_ids))
        return taken_count <= self.available_count - woken_count

    def take(self, count: int) -> list[int]:
        """Leases blocks of unknown content: free ones, then the least recently used cached ones.

        At most `available_count`.
        """
        taken = [self._free.pop() if self._free else self._cache.evict() for _ in range(count)]
        for block_id in taken:
            self._reference_counts[block_id] = 1
        return taken

    def share(self, block_ids: Iterable[int]) -> None:
        """Adds a lease to blocks that the prefix cache found."""
        for block_id in block_ids:
            if self._reference_counts[block_id] == 0:
                self._cache.wake(block_id)
            self._reference_counts[block_id] += 1

    def give_back(self, block_ids: list[int]) -> None:
        """Ends one lease of each block of a table, in the table's order.

        The last block of a prefix becomes idle first and is evicted first: a
        prefix shrinks from its end, and what is left of it can still be hit.
        """
        for block_id in reversed(block_ids):
            self._reference_counts[block_id] -= 1
            if self._reference_counts[block_id] == 0 and not self._cache.keep(block_id):
                self._free.append(block_id)

    def flush(self) -> int:
        """Frees every cached block and returns how many there were."""
        flushed = [self._cache.evict() for _ in range(self._cache.idle_count)]
        self._free.extend(reversed(flushed))
        return len(flushed)

    def violations(self, tables: Iterable[list[int]]) -> list[str]:
        """Returns what is inconsistent with the tables of all sequences, in words; nothing if all is well."""
        leases = Counter(block_id for table in tables for block_id in table)
        found = self._cache.violations()
        if len(set(self._free)) != len(self._free):
            found.append("a block is free twice")
        free = set(self._free)
        for block_id, reference_count in enumerate(self._reference_counts):
            if reference_count != leases[block_id]:
                found.append(f"block {block_id} has {reference_count} references and {leases[block_id]} leases")
            state_count = (block_id in free) + self._cache.is_idle(block_id) + (reference_count > 0)
            if state_count != 1:
                found.append(f"block {block_id} is in {state_count} of the states free, cached and leased")
            if block_id in free and block_id in self._cache:
                found.append(f"block {block_id} is free and can be hit")
        return found
