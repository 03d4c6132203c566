"""Finds computed KV blocks by their content, and keeps those that nobody leases until memory runs out."""

from collections import OrderedDict
from collections.abc import Sequence as Tokens

from headrace.router.digest_chain import DigestChain


class PrefixCache:
    """An index from content to block, and the order in which blocks may be evicted.

    It knows nothing of references: the pool tells it when a block's last lease
    ends (`keep`) and when a block is leased again (`wake`). A block that is
    indexed and not leased is *idle*.

    NOTE: one block for one digest. Sequences that compute the same prefix at the
    same time each fill blocks of their own; the first to commit is indexed, and
    the copies go back to the free list with their leases. Pointing the later
    sequence to the first block would save memory, but block tables on the shard
    would then have to change and not only to grow.
    """

    __slots__ = ("_block_ids", "_digests", "_idle")

    def __init__(self) -> None:
        self._block_ids: dict[bytes, int] = {}
        self._digests: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Least recently used first."""

    @property
    def idle_count(self) -> int:
        """Blocks that can be evicted."""
        return len(self._idle)

    def match(self, chain: DigestChain, token_ids: Tokens[int], block_limit: int) -> list[int]:
        """Returns the blocks that hold the longest cached prefix, at most `block_limit`. Changes nothing."""
        block_ids: list[int] = []
        for index in range(block_limit):
            block_id = self._block_ids.get(chain.digest(index, token_ids))
            if block_id is None:
                break
            block_ids.append(block_id)
        return block_ids

    def commit(self, digest: bytes, block_id: int) -> None:
        """Indexes a leased block whose every slot is computed. Does nothing if the content is indexed already."""
        if digest not in self._block_ids:
            self._block_ids[digest] = block_id
            self._digests[block_id] = digest

    def is_idle(self, block_id: int) -> bool:
        """Whether the block is indexed and not leased."""
        return block_id in self._idle

    def keep(self, block_id: int) -> bool:
        """Makes a block idle, the most recently used one; False if it is not indexed, hence worthless."""
        if block_id not in self._digests:
            return False
        self._idle[block_id] = None
        return True

    def wake(self, block_id: int) -> None:
        """Takes an idle block out of eviction's reach."""
        del self._idle[block_id]

    def evict(self) -> int:
        """Forgets the least recently used idle block and returns it. There must be one."""
        block_id, _ = self._idle.popitem(last=False)
        del self._block_ids[self._digests.pop(block_id)]
        return block_id

    def violations(self) -> list[str]:
        """Returns what is inconsistent, in words; nothing if all is well."""
        found: list[str] = []
        if {block_id: digest for digest, block_id in self._block_ids.items()} != self._digests:
            found.append("the index of the prefix cache and its inverse differ")
        found.extend(f"block {block_id} is idle but not indexed" for block_id in self._idle.keys() - self._digests)
        return found

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._digests
