import pytest
from scheduler_rig import make_request

from headrace.router.block_pool import BlockPool
from headrace.router.digest_chain import DigestChain
from headrace.router.prefix_cache import PrefixCache

TOKENS = list(range(20))


def make_pool(block_count: int = 6) -> tuple[BlockPool, PrefixCache]:
    cache = PrefixCache()
    return BlockPool(block_count, cache), cache


def commit(cache: PrefixCache, block_ids: list[int]) -> None:
    chain = DigestChain.of(make_request(TOKENS), block_size=2)
    for index, block_id in enumerate(block_ids):
        cache.commit(chain.digest(index, TOKENS), block_id)


def counts(pool: BlockPool) -> tuple[int, int, int]:
    return pool.free_count, pool.cached_count, pool.leased_count


def test_hands_out_each_block_once() -> None:
    pool, _ = make_pool()
    taken = pool.take(4) + pool.take(2)
    assert sorted(taken) == [0, 1, 2, 3, 4, 5]
    assert counts(pool) == (0, 0, 6)
    assert pool.violations([taken]) == []


def test_blocks_without_indexed_content_become_free() -> None:
    pool, _ = make_pool()
    pool.give_back(pool.take(4))
    assert counts(pool) == (6, 0, 0)


def test_indexed_blocks_become_cached_and_can_be_taken() -> None:
    pool, cache = make_pool()
    table = pool.take(3)
    commit(cache, table[:2])
    pool.give_back(table)
    assert counts(pool) == (4, 2, 0)
    assert pool.available_count == pool.total_count == 6
    assert sorted(pool.take(6)) == [0, 1, 2, 3, 4, 5]
    assert counts(pool) == (0, 0, 6)


def test_free_blocks_go_before_cached_ones() -> None:
    pool, cache = make_pool()
    table = pool.take(2)
    commit(cache, table)
    pool.give_back(table)
    assert not set(pool.take(4)) & set(table)
    assert counts(pool) == (0, 2, 4)


def test_a_prefix_is_evicted_from_its_end() -> None:
    pool, cache = make_pool(3)
    table = pool.take(3)
    commit(cache, table)
    pool.give_back(table)
    assert [*pool.take(1), *pool.take(1), *pool.take(1)] == table[::-1]


def test_a_shared_block_is_leased_until_the_last_lease_ends() -> None:
    pool, cache = make_pool()
    table = pool.take(2)
    commit(cache, table)
    pool.share(table)
    pool.give_back(table)
    assert counts(pool) == (4, 0, 2)
    assert pool.violations([table]) == []
    pool.give_back(table)
    assert counts(pool) == (4, 2, 0)
    pool.share(table)
    assert counts(pool) == (4, 0, 2)


def test_sharing_cached_blocks_leaves_fewer_to_take() -> None:
    pool, cache = make_pool()
    table = pool.take(4)
    commit(cache, table)
    pool.give_back(table)
    assert pool.can_lease([], 6)
    assert pool.can_lease(table[:3], 3)
    assert not pool.can_lease(table[:3], 4)
    pool.share(table[:3])
    assert pool.can_lease(table[:3], 3), "leased already, so nothing is lost by sharing"


def test_flush_frees_what_is_cached_and_nothing_else() -> None:
    pool, cache = make_pool()
    table = pool.take(4)
    commit(cache, table[:3])
    pool.share(table[:1])
    pool.give_back(table)
    assert pool.flush() == 2
    assert counts(pool) == (5, 0, 1)
    assert pool.violations([table[:1]]) == []
    assert pool.flush() == 0


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ([], "block 0 has 1 references and 0 leases"),
        ([[0, 1], [0]], "block 0 has 1 references and 2 leases"),
        ([[0, 1, 2]], "block 2 has 0 references and 1 leases"),
    ],
)
def test_says_which_lease_is_wrong(tables: list[list[int]], problem: str) -> None:
    pool, _ = make_pool()
    pool.take(2)
    assert problem in pool.violations(tables)


def test_notices_a_block_that_is_given_back_twice() -> None:
    pool, _ = make_pool()
    table = pool.take(1)
    pool.give_back(table)
    pool.give_back(table)
    assert "block 0 has -1 references and 0 leases" in pool.violations([])


def test_notices_a_free_block_that_can_be_hit() -> None:
    pool, cache = make_pool()
    commit(cache, [5])
    assert pool.violations([]) == ["block 5 is free and can be hit"]
