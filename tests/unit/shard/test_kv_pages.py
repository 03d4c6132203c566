"""Pages of a KV cache are laid out before a step writes there, and never more than is about to be used."""

import resource
import sys
from collections.abc import Callable

import pytest
import torch

from headrace.shard.kv_cache import KvBudget, LayerCache, allocate
from headrace.shard.kv_pages import KvPages
from tests.unit.shard.test_sizing import CONFIG

BLOCK_SHAPE = (2, 16, 16)


class Work:
    """Work beside the steps, done when a test says so."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []

    def __call__(self, work: Callable[[], None]) -> Callable[[], bool]:
        self._waiting.append(work)
        return lambda: work in self._waiting

    def do(self) -> int:
        """Does what waits; returns how much that was."""
        count = len(self._waiting)
        for work in self._waiting:
            work()
        self._waiting.clear()
        return count


class Memory:
    """A cache of two layers, and which of its blocks the system was asked for."""

    def __init__(self, block_count: int, *, is_possible: bool = True) -> None:
        self.caches = [
            LayerCache(keys=torch.zeros(block_count, *BLOCK_SHAPE), values=torch.zeros(block_count, *BLOCK_SHAPE))
            for _ in range(2)
        ]
        self._tensors = [tensor for cache in self.caches for tensor in (cache.keys, cache.values)]
        self._is_possible = is_possible
        self.blocks: list[set[int]] = [set() for _ in self._tensors]
        self.call_count = 0

    def populate(self, begin: int, end: int) -> bool:
        self.call_count += 1
        for tensor, blocks in zip(self._tensors, self.blocks, strict=True):
            size_bytes = tensor[0].nbytes
            if tensor.data_ptr() <= begin < tensor.data_ptr() + tensor.nbytes:
                first, last = (begin - tensor.data_ptr()) // size_bytes, (end - tensor.data_ptr()) // size_bytes
                blocks.update(range(first, last))
        return self._is_possible


def make(memory: Memory, work: Work) -> KvPages:
    return KvPages(memory.caches, ahead_block_count=8, populate=memory.populate, start=work)


def test_begins_with_the_first_blocks_of_every_layer() -> None:
    memory, work = Memory(100), Work()
    make(memory, work)
    assert memory.call_count == 0, "the one who loads waits for nothing"
    work.do()
    assert memory.blocks == [set(range(8))] * 4


def test_stays_ahead_of_the_highest_block() -> None:
    memory, work = Memory(100), Work()
    pages = make(memory, work)
    work.do()
    for block_id in range(40):
        pages.reach(block_id)
        work.do()
        assert all(blocks >= set(range(min(100, block_id + 7))) for blocks in memory.blocks)
        assert all(max(blocks) <= block_id + 8 for blocks in memory.blocks)


def test_blocks_that_were_used_before_start_nothing() -> None:
    memory, work = Memory(100), Work()
    pages = make(memory, work)
    work.do()
    pages.reach(30)
    work.do()
    for block_id in (0, 30, 12):
        pages.reach(block_id)
    assert work.do() == 0


def test_does_not_start_for_each_block() -> None:
    memory, work = Memory(1000), Work()
    pages = make(memory, work)
    started_count = work.do()
    for block_id in range(100):
        pages.reach(block_id)
        started_count += work.do()
    assert started_count == 1 + 100 // 2


def test_waits_for_what_goes_on() -> None:
    memory, work = Memory(100), Work()
    pages = make(memory, work)
    pages.reach(20)
    pages.reach(40)
    assert work.do() == 1
    pages.reach(41)
    work.do()
    assert all(set(range(41, 50)) <= blocks for blocks in memory.blocks)


def test_ends_with_the_cache() -> None:
    memory, work = Memory(11), Work()
    pages = make(memory, work)
    work.do()
    for block_id in range(11):
        pages.reach(block_id)
        work.do()
    assert memory.blocks == [set(range(11))] * 4
    assert work.do() == 0


def test_a_system_that_cannot_is_asked_once() -> None:
    memory, work = Memory(100, is_possible=False), Work()
    pages = make(memory, work)
    work.do()
    pages.reach(50)
    assert work.do() == 0
    assert memory.call_count == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no call for it")
def test_steps_wait_for_no_page() -> None:
    budget = KvBudget(block_count=4096, block_size=16, block_size_bytes=2 * 5 * 2 * 16 * 16 * 4, reason="for a test")
    caches = allocate(CONFIG, budget, dtype=torch.float32, device=torch.device("cpu"))
    kept = caches[3].keys[5].fill_(7.0)

    def at_once(work: Callable[[], None]) -> Callable[[], bool]:
        work()
        return bool

    KvPages(caches, ahead_block_count=4096, start=at_once)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for cache in caches:
        cache.values.fill_(1.0)
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before < 5
    assert kept.eq(7.0).all()
