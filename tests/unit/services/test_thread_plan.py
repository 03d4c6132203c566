"""How many threads a shard computes with, and when they are bound to processors."""

from pathlib import Path

import pytest

from headrace.contract.errors import StartupError
from headrace.services.processors import Processors, parse_processors, read_processors
from headrace.services.router_process import processor_share
from headrace.services.settings import ServeSettings, ShardSettings
from headrace.services.thread_plan import ThreadPlan, plan_threads, share_processors

FOUR = Processors(allowed=(0, 1, 2, 3), cores=(0, 1, 2, 3))
TWO_OF_TWO = Processors(allowed=(0, 1, 8, 9), cores=(0, 1))
"""Two cores of two threads each."""


@pytest.mark.parametrize(
    ("binding", "thread_count", "processors", "expected"),
    [
        ("auto", 0, FOUR, ThreadPlan(count=4, processors=(0, 1, 2, 3))),
        ("auto", 4, FOUR, ThreadPlan(count=4, processors=(0, 1, 2, 3))),
        # Fewer may leave room for another shard, and more share cores anyway.
        ("auto", 2, FOUR, ThreadPlan(count=2)),
        ("auto", 5, FOUR, ThreadPlan(count=5)),
        ("none", 0, FOUR, ThreadPlan(count=4)),
        ("auto", 0, TWO_OF_TWO, ThreadPlan(count=2, processors=(0, 1))),
        ("auto", 4, TWO_OF_TWO, ThreadPlan(count=4, processors=(0, 1, 8, 9))),
        ("2-3", 0, FOUR, ThreadPlan(count=2, processors=(2, 3))),
        ("3,1,0", 2, FOUR, ThreadPlan(count=2, processors=(3, 1))),
    ],
)
def test_threads_of_one_shard(binding: str, thread_count: int, processors: Processors, expected: ThreadPlan) -> None:
    assert plan_threads(binding, thread_count, processors) == expected


@pytest.mark.parametrize(("quota", "count"), [(2.5, 2), (0.5, 1), (4.0, 4), (9.0, 4)])
def test_a_quota_bounds_the_threads_and_tells_no_cores(quota: float, count: int) -> None:
    plan = plan_threads("auto", 0, Processors(allowed=FOUR.allowed, cores=FOUR.cores, quota=quota))
    assert plan == ThreadPlan(count=count, processors=FOUR.cores if count == 4 else ())
    assert plan_threads("auto", 4, Processors(allowed=FOUR.allowed, cores=FOUR.cores, quota=2.0)).processors == ()


def test_a_system_that_tells_no_processors_binds_none() -> None:
    assert plan_threads("auto", 0, Processors(allowed=(), cores=(0, 1))) == ThreadPlan(count=2)
    assert share_processors("auto", 0, 2, Processors(allowed=(), cores=(0, 1))) == [ThreadPlan(count=1)] * 2


@pytest.mark.parametrize(
    ("binding", "thread_count", "problem"),
    [("2,4", 0, "may not use the processor 4, only 0,1,2,3"), ("2-3", 3, "2 processors are too few for 3 threads")],
)
def test_a_list_that_cannot_be_kept(binding: str, thread_count: int, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        plan_threads(binding, thread_count, FOUR)


@pytest.mark.parametrize(
    ("binding", "thread_count", "shard_count", "expected"),
    [
        ("auto", 0, 2, [ThreadPlan(count=2, processors=(0, 1)), ThreadPlan(count=2, processors=(2, 3))]),
        ("auto", 1, 2, [ThreadPlan(count=1, processors=(0,)), ThreadPlan(count=1, processors=(2,))]),
        ("auto", 0, 3, [ThreadPlan(count=1, processors=(core,)) for core in (0, 1, 2)]),
        ("auto", 0, 5, [ThreadPlan(count=1)] * 5),
        ("auto", 4, 2, [ThreadPlan(count=4)] * 2),
        ("none", 0, 2, [ThreadPlan(count=2)] * 2),
        ("1-3", 0, 3, [ThreadPlan(count=1, processors=(core,)) for core in (1, 2, 3)]),
    ],
)
def test_shards_of_one_supervisor_share(
    binding: str, thread_count: int, shard_count: int, expected: list[ThreadPlan]
) -> None:
    plans = share_processors(binding, thread_count, shard_count, FOUR)
    assert plans == expected
    taken = [processor for plan in plans for processor in plan.processors]
    assert len(taken) == len(set(taken))


def test_a_list_that_cannot_be_shared() -> None:
    with pytest.raises(ValueError, match="2 processors are too few for 3 shards"):
        share_processors("0-1", 0, 3, FOUR)
    with pytest.raises(StartupError, match="1 processors are too few for 2 shards"):
        processor_share(ServeSettings(model="m", replica_count=2, cpu_binding="0"), 0)


def test_only_shards_that_compute_on_processors_share_them() -> None:
    assert processor_share(ServeSettings(model="m"), 0) == {}
    assert processor_share(ServeSettings(model="m", replica_count=2, device="cuda"), 0) == {}
    assert processor_share(ServeSettings(model="m", replica_count=2, cpu_binding="none", thread_count=3), 1) == {
        "thread_count": 3,
        "cpu_binding": "none",
    }


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-2", "1,1", "0-2,1", "1;2", "auto "])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="processors"):
        parse_processors(text)
    with pytest.raises(ValueError, match="processors"):
        ShardSettings(model="m", cpu_binding=text)


def test_a_list_keeps_its_order() -> None:
    assert parse_processors("8,0-3,5") == (8, 0, 1, 2, 3, 5)


class System:
    """The files by which Linux tells of processors, in a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def write(self, path: str, text: str) -> None:
        target = self._root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 2, 5, 6})
    return System(tmp_path)


def test_threads_of_a_core_count_once(system: System, tmp_path: Path) -> None:
    assert read_processors(tmp_path) == Processors(allowed=(1, 2, 5, 6), cores=(1, 2, 5, 6))
    for number, siblings in {1: "1,5", 2: "2,6", 5: "1,5", 6: "2,6"}.items():
        system.write(f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list", f"{siblings}\n")
    assert read_processors(tmp_path) == Processors(allowed=(1, 2, 5, 6), cores=(1, 2))


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "150000 100000\n"}, 1.5),
        # A container sees its own group at the root, under a name that only its host knows.
        ("0::/elsewhere/x\n", {"cpu.max": "50000 100000\n"}, 0.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("1:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "200000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 2.0),
        ("1:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("2:memory:/a\n", {"cpu/a/cpu.cfs_quota_us": "1\n", "cpu/a/cpu.cfs_period_us": "1\n"}, None),
    ],
)
def test_the_quota_of_a_container(
    system: System, tmp_path: Path, groups: str, files: dict[str, str], quota: float | None
) -> None:
    system.write("proc/self/cgroup", groups)
    for path, text in files.items():
        system.write(f"sys/fs/cgroup/{path}", text)
    assert read_processors(tmp_path).quota == quota
