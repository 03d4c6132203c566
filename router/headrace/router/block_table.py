"""The lease of a running sequence on its KV blocks."""

import sys
from typing import Final

from headrace.router.block_pool import BlockPool
from headrace.router.digest_chain import DigestChain
from headrace.router.prefix_cache import PrefixCache

_NEVER: Final = sys.maxsize


class BlockTable:
    """The blocks of one sequence, in the order of its tokens, from admission to release.

    For tokens [0, n) of a sequence with n known ones:

        [0, hit)               in blocks that the prefix cache found: shared, never written
        [hit, committed)       computed here; the blocks are full and indexed (or an equal block is)
        [committed, computed)  computed here, in blocks that are not full or whose step is unanswered
        [computed, slot_count) leased, of unknown content

    Every boundary left of `computed` is a multiple of the block size.

    NOTE: a block is committed when the step that filled it was *answered*, never
    when it was planned, so whatever ends a sequence early (a cancellation, a
    preemption, a lost shard), nobody hits a block that was not computed. The
    price is that two sequences admitted together do not share their prefix.
    """

    __slots__ = (
        "_cache",
        "_chain",
        "_committed_count",
        "_pool",
        "block_ids",
        "hit_token_count",
        "next_full_count",
        "slot_count",
    )

    def __init__(self, *, pool: BlockPool, cache: PrefixCache, chain: DigestChain, hit_block_ids: list[int]) -> None:
        pool.share(hit_block_ids)
        self._pool = pool
        self._cache = cache
        self._chain = chain
        self._committed_count = len(hit_block_ids)
        self.block_ids = list(hit_block_ids)
        self.hit_token_count = len(hit_block_ids) * chain.block_size
        """Tokens that were computed before the lease began."""
        self.slot_count = self.hit_token_count
        """Tokens that the blocks can hold."""
        self.next_full_count = self.slot_count + chain.block_size
        """Computed tokens at which there is a block to commit."""

    @property
    def is_released(self) -> bool:
        """Whether the lease is over."""
        return not self.block_ids

    def missing_block_count(self, token_count: int) -> int:
        """Returns how many blocks have to be added so that the table holds this many tokens."""
        return max(0, -(-(token_count - self.slot_count) // self._chain.block_size))

    def grow(self, block_count: int) -> list[int]:
        """Leases more blocks and returns them. The pool must have them."""
        added = self._pool.take(block_count)
        self.block_ids += added
        self.slot_count += block_count * self._chain.block_size
        return added

    def commit(self, token_ids: list[int], computed_count: int) -> None:
        """Lets others hit the blocks that [0, computed_count) fills.

        Does nothing after `release`: the blocks may be another's by then.
        """
        while self.next_full_count <= computed_count:
            index = self._committed_count
            self._cache.commit(self._chain.digest(index, token_ids), self.block_ids[index])
            self._committed_count += 1
            self.next_full_count += self._chain.block_size

    def release(self) -> None:
        """Ends the lease. Safe to repeat.

        Safe while a step that writes to the blocks is still unanswered: whoever
        gets them next first appears in a later plan, and the shard runs plans in
        order, so the late write is over before the blocks are used again. Nor
        can it spoil a block that stays in the prefix cache: that one is full,
        and a row only ever writes after its last computed token.
        """
        self._pool.give_back(self.block_ids)
        self.block_ids = []
        self.slot_count = 0
        self.next_full_count = _NEVER
