from scheduler_rig import make_request

from headrace.router.digest_chain import DigestChain
from headrace.router.prefix_cache import PrefixCache

TOKENS = [1, 2, 3, 4, 5, 6]


def chain_of(tokens: list[int]) -> DigestChain:
    return DigestChain.of(make_request(tokens), block_size=2)


def cache_with(block_ids: list[int], tokens: list[int]) -> PrefixCache:
    cache = PrefixCache()
    commit(cache, block_ids, tokens)
    return cache


def commit(cache: PrefixCache, block_ids: list[int], tokens: list[int]) -> None:
    chain = chain_of(tokens)
    for index, block_id in enumerate(block_ids):
        cache.commit(chain.digest(index, tokens), block_id)


def match(cache: PrefixCache, tokens: list[int], block_limit: int = 3) -> list[int]:
    return cache.match(chain_of(tokens), tokens, block_limit)


def test_finds_the_longest_prefix() -> None:
    cache = cache_with([10, 11, 12], TOKENS)
    assert match(cache, TOKENS) == [10, 11, 12]
    assert match(cache, [1, 2, 3, 4, 9, 9]) == [10, 11]
    assert match(cache, [9, 9, 3, 4, 5, 6]) == []


def test_finds_no_more_than_asked() -> None:
    assert match(cache_with([10, 11, 12], TOKENS), TOKENS, block_limit=2) == [10, 11]


def test_a_gap_ends_a_prefix() -> None:
    cache = cache_with([10, 11, 12], TOKENS)
    for block_id in (10, 12, 11):
        assert cache.keep(block_id)
    cache.wake(10)
    cache.wake(12)
    assert cache.evict() == 11
    assert match(cache, TOKENS) == [10]


def test_the_first_block_with_a_content_stays_the_one() -> None:
    cache = cache_with([10], TOKENS)
    commit(cache, [20, 21], TOKENS)
    assert match(cache, TOKENS) == [10, 21]
    assert not cache.keep(20), "a copy is not worth keeping"
    assert cache.violations() == []


def test_evicts_what_was_idle_longest() -> None:
    cache = cache_with([10, 11, 12], TOKENS)
    for block_id in (11, 10, 12):
        cache.keep(block_id)
    assert cache.idle_count == 3
    assert [cache.evict(), cache.evict(), cache.evict()] == [11, 10, 12]
    assert match(cache, TOKENS) == []
    assert cache.violations() == []


def test_what_is_leased_again_is_not_evicted() -> None:
    cache = cache_with([10, 11], TOKENS)
    cache.keep(10)
    cache.keep(11)
    cache.wake(10)
    assert (cache.is_idle(10), cache.is_idle(11)) == (False, True)
    assert cache.evict() == 11
    assert cache.idle_count == 0
    assert match(cache, TOKENS) == [10]


def test_a_hit_counts_as_use() -> None:
    cache = cache_with([10, 11], TOKENS)
    cache.keep(10)
    cache.keep(11)
    cache.wake(10)
    cache.keep(10)
    assert cache.evict() == 11
