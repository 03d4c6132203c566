"""Leases KV blocks to sequences, and lends them what the prefix cache holds already."""

from collections.abc import Iterable
from collections.abc import Sequence as Tokens

from headrace.contract.generation import ValidRequest
from headrace.contract.pooling import Pooling
from headrace.router.block_pool import BlockPool
from headrace.router.block_table import BlockTable
from headrace.router.digest_chain import DigestChain
from headrace.router.prefix_cache import PrefixCache


class KvMemory:
    """The KV blocks of one engine: who leases them, and which can be hit."""

    __slots__ = ("_block_size", "_cache", "pool")

    def __init__(self, *, block_size: int, block_count: int) -> None:
        self._block_size = block_size
        self._cache = PrefixCache()
        self.pool = BlockPool(block_count, self._cache)

    def match(self, request: ValidRequest) -> int:
        """Returns how many of a prompt's tokens need not be computed. Changes nothing."""
        if request.logprobs.prompt or (request.pooling is not None and request.pooling.pooling is Pooling.MEAN):
            return 0
        chain = DigestChain.of(request, self._block_size)
        return len(self._hits(chain, request.prompt_token_ids)) * self._block_size

    def shareable_count(self, request: ValidRequest) -> int:
        """Returns how many of a prompt's tokens could be found, if they were computed before."""
        return self._hit_limit(request.prompt_token_ids) * self._block_size

    def lease(
        self, chain: DigestChain, token_ids: Tokens[int], *, may_hit: bool, reserved_count: int
    ) -> BlockTable | None:
        """Leases room for these tokens, or for none of them.

        Returns the table, or None if fewer than `reserved_count` blocks would
        be left for others. Nothing is evicted for a lease that fails.
        """
        hits = self._hits(chain, token_ids) if may_hit else []
        missing_count = -(-len(token_ids) // self._block_size) - len(hits)
        if not self.pool.can_lease(hits, missing_count + reserved_count):
            return None
        table = BlockTable(pool=self.pool, cache=self._cache, chain=chain, hit_block_ids=hits)
        table.grow(missing_count)
        return table

    def violations(self, tables: Iterable[BlockTable]) -> list[str]:
        """Returns what is inconsistent with the tables of all rows, in words; nothing if all is well."""
        return self.pool.violations(table.block_ids for table in tables)

    def _hits(self, chain: DigestChain, token_ids: Tokens[int]) -> list[int]:
        """Finds the longest cached prefix, short of the last token: the next one is sampled from computing that."""
        return self._cache.match(chain, token_ids, self._hit_limit(token_ids))

    def _hit_limit(self, token_ids: Tokens[int]) -> int:
        return (len(token_ids) - 1) // self._block_size
