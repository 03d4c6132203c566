"""Has the system lay out the memory of a KV cache before steps write there, on a thread beside them."""

import ctypes
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

from headrace.shard.kv_cache import KvBudget, LayerCache

_MADV_POPULATE_WRITE = 23
"""Of Linux, since 5.14. Python does not name it."""

_STRIDE_BYTES = 2 << 20
"""Laid out at once: a huge page."""

_REST_S = 0.02
"""Without a step, after which a replica counts as idle."""

_TOKENS_AHEAD = 16384
_BYTES_AHEAD = 512 << 20
"""Kept laid out, whichever is less: what a burst of prompts fills in seconds."""

Populate = Callable[[int, int], bool]
"""Lays out the memory from one address to another, exclusive; returns whether the system could."""

Start = Callable[[Callable[[], None]], Callable[[], bool]]
"""Starts work beside the steps; what it returns tells whether the work still goes on."""


class KvPages:
    """Keeps a number of blocks beyond the highest one in use laid out.

    The system finds and clears a page when it is written first, and the step
    that writes waits for it. A huge page may take milliseconds, on a virtual
    machine whose host has to find it first; a step that fills new blocks of
    all layers waits for dozens of them. So it is done while no step runs: beside
    one it would take a processor from threads that all need theirs. Memory is
    still taken as it is used, only somewhat earlier, and nothing is written: what
    a block holds stays. Where the system cannot do that, and where there is never
    a pause, steps wait as before.
    """

    def __init__(
        self,
        caches: Sequence[LayerCache],
        *,
        ahead_block_count: int,
        populate: Populate | None = None,
        start: Start | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Begins with the first blocks.

        Args:
            caches: Every layer's, on a CPU.
            ahead_block_count: Blocks that are kept laid out beyond the highest one in use.
            populate: Stands in for the system in tests.
            start: Stands in for a thread in tests.
            clock: Seconds from any start.
            sleep: Waits for so many seconds, in what `start` was given.
        """
        self._tensors = [tensor for cache in caches for tensor in (cache.keys, cache.values)]
        self._block_count = len(self._tensors[0])
        self._ahead_block_count = ahead_block_count
        self._populate = populate or _populate
        self._start = start or _Beside()
        self._clock = clock
        self._sleep = sleep
        self._is_going_on: Callable[[], bool] = bool
        self._laid_out_count = 0
        self._is_possible = True
        self._highest_block_id = -1
        self._is_stepping = False
        self._rested_s = -_REST_S
        self._go_on()

    @classmethod
    def of(cls, caches: Sequence[LayerCache], budget: KvBudget) -> Self:
        """Returns the pages of a cache, with as many blocks ahead as a burst of prompts may fill."""
        count = min(_TOKENS_AHEAD // budget.block_size, _BYTES_AHEAD // budget.block_size_bytes)
        return cls(caches, ahead_block_count=max(1, count))

    def begin_step(self, block_id: int) -> None:
        """Learns that a step writes to blocks up to this one. Returns at once."""
        self._is_stepping = True
        self._highest_block_id = max(self._highest_block_id, block_id)
        self._go_on()

    def end_step(self) -> None:
        """Learns that the step is over."""
        self._rested_s = self._clock()
        self._is_stepping = False

    def _go_on(self) -> None:
        wanted = min(self._block_count, self._highest_block_id + 1 + self._ahead_block_count)
        # By a quarter at a time, for a thread is started for each.
        least = self._laid_out_count + self._ahead_block_count // 4
        if wanted <= self._laid_out_count or (wanted < self._block_count and wanted < least):
            return
        if not self._is_possible or self._is_going_on():
            return
        begin = max(self._laid_out_count, self._highest_block_id)
        self._is_going_on = self._start(lambda: self._lay_out(begin, wanted))

    def _lay_out(self, begin: int, end: int) -> None:
        """Lays out a range of blocks, in the order in which they are used."""
        stride = max(1, _STRIDE_BYTES // self._tensors[0][0].nbytes)
        for first in range(begin, end, stride):
            for tensor in self._tensors:
                if not self._wait_for_rest():
                    return
                blocks = tensor[first : min(first + stride, end)]
                if not self._populate(blocks.data_ptr(), blocks.data_ptr() + blocks.nbytes):
                    self._is_possible = False
                    return
        self._laid_out_count = end

    def _wait_for_rest(self) -> bool:
        """Waits until no step runs; returns whether the process still goes on."""
        # A thread that the interpreter has to stop in the middle of a call takes the process down with it.
        while is_wanted := threading.main_thread().is_alive():
            if not self._is_stepping and self._clock() - self._rested_s >= _REST_S:
                break
            self._sleep(_REST_S)
        return is_wanted


class _Beside:
    """Runs work on a thread of its own, on the processors of the thread that made this."""

    def __init__(self) -> None:
        self._processors = os.sched_getaffinity(0) if sys.platform == "linux" else set[int]()

    def __call__(self, work: Callable[[], None]) -> Callable[[], bool]:
        def run() -> None:
            if sys.platform == "linux":
                # Those that compute are bound to a processor each, and a thread inherits that.
                os.sched_setaffinity(0, self._processors)
            work()

        thread = threading.Thread(target=run, name="kv-pages")
        thread.start()
        return thread.is_alive


def _populate(begin: int, end: int) -> bool:
    if sys.platform != "linux":
        return False
    begin -= begin % mmap.PAGESIZE
    # Lets go of the interpreter lock, which mmap's own method does not.
    answer: int = ctypes.CDLL(None).madvise(
        ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), ctypes.c_int(_MADV_POPULATE_WRITE)
    )
    return answer == 0
