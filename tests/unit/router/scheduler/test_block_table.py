import pytest
from scheduler_rig import make_request

from headrace.router.block_pool import BlockPool
from headrace.router.block_table import BlockTable
from headrace.router.digest_chain import DigestChain
from headrace.router.prefix_cache import PrefixCache

TOKENS = list(range(12))


class Memory:
    """Four-token blocks, and tables over the same tokens."""

    def __init__(self) -> None:
        self.cache = PrefixCache()
        self.pool = BlockPool(10, self.cache)

    def table(self, hits: list[int] | None = None) -> BlockTable:
        chain = DigestChain.of(make_request(TOKENS), block_size=4)
        return BlockTable(pool=self.pool, cache=self.cache, chain=chain, hit_block_ids=hits or [])

    def hits(self) -> list[int]:
        return self.cache.match(DigestChain.of(make_request(TOKENS), block_size=4), TOKENS, 3)


@pytest.fixture
def memory() -> Memory:
    return Memory()


def test_grows_by_whole_blocks(memory: Memory) -> None:
    table = memory.table()
    assert [table.missing_block_count(count) for count in (0, 1, 4, 5)] == [0, 1, 1, 2]
    added = table.grow(2)
    assert table.block_ids == added
    assert table.slot_count == 8
    assert [table.missing_block_count(count) for count in (8, 9)] == [0, 1]
    assert memory.pool.leased_count == 2


@pytest.mark.parametrize(("computed_count", "hit_count"), [(0, 0), (3, 0), (4, 1), (7, 1), (8, 2), (12, 3)])
def test_commits_blocks_that_are_full(memory: Memory, computed_count: int, hit_count: int) -> None:
    table = memory.table()
    table.grow(3)
    table.commit(TOKENS, computed_count)
    assert memory.hits() == table.block_ids[:hit_count]


def test_says_when_there_is_something_to_commit(memory: Memory) -> None:
    table = memory.table()
    table.grow(3)
    assert table.next_full_count == 4
    table.commit(TOKENS, 9)
    assert table.next_full_count == 12


def test_builds_on_what_was_hit(memory: Memory) -> None:
    first = memory.table()
    first.grow(2)
    first.commit(TOKENS, 8)
    second = memory.table(hits=memory.hits()[:1])
    assert (second.hit_token_count, second.slot_count, second.next_full_count) == (4, 4, 8)
    second.grow(2)
    second.commit(TOKENS, 12)
    assert second.block_ids[0] == first.block_ids[0]
    assert memory.hits() == [*first.block_ids, second.block_ids[2]]


def test_release_frees_at_once_and_only_once(memory: Memory) -> None:
    table = memory.table()
    table.grow(3)
    table.commit(TOKENS, 4)
    assert not table.is_released
    table.release()
    table.release()
    assert table.is_released
    assert (memory.pool.free_count, memory.pool.cached_count, memory.pool.leased_count) == (9, 1, 0)


def test_nothing_is_committed_after_the_release(memory: Memory) -> None:
    table = memory.table()
    table.grow(3)
    table.release()
    table.commit(TOKENS, 12)
    assert memory.hits() == []
    assert table.slot_count == 0
