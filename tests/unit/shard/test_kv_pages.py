"""Pages of a KV cache are laid out before a step writes there, and never more than is about to be used."""

import resource
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from headrace.shard.kv_cache import KvBudget, LayerCache, allocate
from headrace.shard.kv_pages import KvPages
from tests.unit.shard.test_sizing import CONFIG

BLOCK_SHAPE = (2, 16, 16384)
"""A huge page each. Nobody writes to them, so they take no memory."""


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
            LayerCache(keys=torch.empty(block_count, *BLOCK_SHAPE), values=torch.empty(block_count, *BLOCK_SHAPE))
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


class Time:
    """A clock that goes on when somebody sleeps, and what happens meanwhile."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.meanwhile: list[Callable[[], None]] = []

    def clock(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.now_s += 1.5 * duration_s
        assert self.meanwhile, "nothing would ever end this"
        self.meanwhile.pop(0)()


def make(memory: Memory, work: Work, time: Time | None = None) -> KvPages:
    time = time or Time()
    return KvPages(
        memory.caches, ahead_block_count=8, populate=memory.populate, start=work, clock=time.clock, sleep=time.sleep
    )


def step(pages: KvPages, time: Time, block_id: int) -> None:
    """Runs a step, and rests for longer than it takes to be idle."""
    pages.begin_step(block_id)
    pages.end_step()
    time.now_s += 1.0


def test_begins_with_the_first_blocks_of_every_layer() -> None:
    memory, work = Memory(100), Work()
    make(memory, work)
    assert memory.call_count == 0, "the one who loads waits for nothing"
    work.do()
    assert memory.blocks == [set(range(8))] * 4


def test_stays_ahead_of_the_highest_block() -> None:
    memory, work, time = Memory(100), Work(), Time()
    pages = make(memory, work, time)
    work.do()
    for block_id in range(40):
        step(pages, time, block_id)
        work.do()
        assert all(blocks >= set(range(block_id + 7)) for blocks in memory.blocks)
        assert all(max(blocks) <= block_id + 8 for blocks in memory.blocks)


def test_blocks_that_were_used_before_start_nothing() -> None:
    memory, work, time = Memory(100), Work(), Time()
    pages = make(memory, work, time)
    work.do()
    step(pages, time, 30)
    work.do()
    for block_id in (0, 30, 12):
        step(pages, time, block_id)
    assert work.do() == 0


def test_does_not_start_for_each_block() -> None:
    memory, work, time = Memory(1000), Work(), Time()
    pages = make(memory, work, time)
    started_count = work.do()
    for block_id in range(100):
        step(pages, time, block_id)
        started_count += work.do()
    assert started_count == 1 + 100 // 2


def test_waits_for_what_goes_on() -> None:
    memory, work, time = Memory(100), Work(), Time()
    pages = make(memory, work, time)
    step(pages, time, 20)
    step(pages, time, 40)
    assert work.do() == 1
    step(pages, time, 41)
    work.do()
    assert all(set(range(41, 50)) <= blocks for blocks in memory.blocks)


def test_leaves_the_processors_to_steps() -> None:
    memory, work, time = Memory(100), Work(), Time()
    pages = make(memory, work, time)
    work.do()
    counts: list[int] = []

    def note() -> None:
        counts.append(memory.call_count)

    def end() -> None:
        note()
        pages.end_step()

    pages.begin_step(2)
    # Two looks while the step runs, and one when the next could still follow at once.
    time.meanwhile = [note, end, note]
    work.do()
    assert counts == [4 * 8] * 3
    assert memory.blocks == [set(range(11))] * 4


def test_ends_with_the_cache() -> None:
    memory, work, time = Memory(11), Work(), Time()
    pages = make(memory, work, time)
    work.do()
    for block_id in range(11):
        step(pages, time, block_id)
        work.do()
    assert memory.blocks == [set(range(11))] * 4
    assert work.do() == 0


def test_a_system_that_cannot_is_asked_once() -> None:
    memory, work, time = Memory(100, is_possible=False), Work(), Time()
    pages = make(memory, work, time)
    work.do()
    step(pages, time, 50)
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


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no call for it")
@pytest.mark.parametrize("is_stepping", [False, True], ids=["at work", "waiting"])
def test_a_process_ends_while_pages_are_laid_out(*, is_stepping: bool) -> None:
    program = f"""
import torch
from headrace.shard.kv_cache import LayerCache
from headrace.shard.kv_pages import KvPages
shape = (100, 2, 16, 16384)
pages = KvPages([LayerCache(keys=torch.empty(shape), values=torch.empty(shape))], ahead_block_count=60)
if {is_stepping}:
    pages.begin_step(30)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
