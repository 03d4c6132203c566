"""Threads that compute are bound to their processors, and no other thread is."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from headrace.contract.errors import StartupError
from headrace.kernels.dispatch import select
from headrace.shard.compute_threads import ComputeThreads
from headrace.shard.engines.native import load_native_engine
from headrace.shard.engines.native_options import NativeOptions


def affinities() -> dict[int, set[int]]:
    """Returns where each thread of this process may run."""
    return {int(path.name): os.sched_getaffinity(int(path.name)) for path in Path("/proc/self/task").iterdir()}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor is no choice")
def test_each_thread_of_the_pool_gets_its_processor() -> None:
    allowed = os.sched_getaffinity(0)
    first, second, *_ = sorted(allowed)
    told: list[str] = []
    kernels = select(torch.device("cpu"), "cpu")
    threads = ComputeThreads(kernels, (second, first), told.append)
    with ThreadPoolExecutor(1, initializer=threads.adopt) as engine:
        pool = engine.submit(kernels.thread_ids).result()
        engine.submit(torch.ones(512, 512).matmul, torch.ones(512, 512)).result()
        now = affinities()
        assert [now[thread_id] for thread_id in pool] == [{second}, {first}]
        assert all(now[thread_id] == allowed for thread_id in now.keys() - set(pool))
    assert told == []


def test_a_processor_that_is_not_there_only_costs_the_binding() -> None:
    told: list[str] = []
    kernels = select(torch.device("cpu"), "cpu")
    allowed = os.sched_getaffinity(0)
    with ThreadPoolExecutor(1, initializer=ComputeThreads(kernels, (1 << 20,), told.append).adopt) as engine:
        assert engine.submit(os.sched_getaffinity, 0).result() == allowed
    assert "cannot be bound" in told[0]


def test_operators_that_tell_no_threads_are_not_bound() -> None:
    told: list[str] = []
    ComputeThreads(select(torch.device("cpu"), "reference"), (0,), told.append).adopt()
    assert told == ["the reference operators run on threads that cannot be bound to processors"]


@pytest.mark.parametrize("processors", ["0", "0,x"])
def test_there_is_a_processor_for_each_thread(processors: str) -> None:
    with pytest.raises(StartupError, match="engine option processors"):
        load_native_engine(NativeOptions(model="", thread_count=2, processors=processors), print)
