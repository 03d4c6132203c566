"""The supervisor starts processes again, ever more slowly, and takes them along when it ends."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from headrace.contract.clock import Clock, MonotonicClock
from headrace.contract.errors import StartupError
from headrace.services import child_process
from headrace.services.shard_supervisor import ShardSupervisor

Log = list[dict[str, object]]


class LeapingClock:
    """A minute passes with each look."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def now(self) -> float:
        self._now_s += 60.0
        return self._now_s


@pytest.fixture
def log() -> Iterator[Log]:
    with structlog.testing.capture_logs() as lines:
        yield lines


def python(script: str) -> list[str]:
    return [sys.executable, "-S", "-c", script]


async def run_until(supervisor: ShardSupervisor, log: Log, *, exit_count: int) -> list[object]:
    """Returns the waiting times after so many exits."""
    task = asyncio.create_task(supervisor.run())
    while len(waits := [line["restart_in_s"] for line in log if line["event"] == "shard_exited"]) < exit_count:
        assert not task.done()
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return waits[:exit_count]


@pytest.mark.parametrize(
    ("clock", "expected"), [(MonotonicClock(), [0.01, 0.02, 0.04]), (LeapingClock(), [0.01, 0.01, 0.01])]
)
async def test_a_process_that_dies_is_started_again(log: Log, clock: Clock, expected: list[float]) -> None:
    supervisor = ShardSupervisor([python("raise SystemExit(1)")], clock=clock, backoff_first_s=0.01)
    assert await run_until(supervisor, log, exit_count=3) == expected
    assert supervisor.pids == {}


async def test_a_killed_process_is_started_again(log: Log) -> None:
    supervisor = ShardSupervisor([python("input()")] * 2, clock=MonotonicClock(), backoff_first_s=0.01)
    task = asyncio.create_task(supervisor.run())
    while len(supervisor.pids) < 2:  # noqa: ASYNC110  # nobody tells
        await asyncio.sleep(0.005)
    first, second = supervisor.pids[0], supervisor.pids[1]
    os.kill(second, signal.SIGKILL)
    while supervisor.pids.get(1, second) == second:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    assert supervisor.pids[0] == first
    [exited] = [line for line in log if line["event"] == "shard_exited"]
    assert (exited["shard"], exited["exit_code"]) == (1, -signal.SIGKILL)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_process_that_cannot_start_ends_the_supervisor_and_the_others(log: Log) -> None:
    supervisor = ShardSupervisor([python("input()"), python("raise SystemExit(2)")], clock=MonotonicClock())
    with pytest.raises(StartupError, match="shard 1 cannot start"):
        await supervisor.run()
    assert supervisor.pids == {}
    assert {line["shard"] for line in log if line["event"] == "shard_started"} == {0, 1}


async def test_a_process_that_once_ran_is_given_more_chances(log: Log, tmp_path: Path) -> None:
    script = f"import os; os.open({str(tmp_path / 'ran')!r}, os.O_CREAT | os.O_EXCL)"
    command = [*python(f"try:\n  {script}\nexcept OSError:\n  raise SystemExit(2)")]
    supervisor = ShardSupervisor([command], clock=MonotonicClock(), backoff_first_s=0.01)
    await run_until(supervisor, log, exit_count=3)
    assert [line["exit_code"] for line in log if line["event"] == "shard_exited"][:3] == [0, 2, 2]


async def test_a_process_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(child_process, "STOP_GRACE_S", 0.1)
    ready = tmp_path / "ready"
    stubborn = f"import signal; signal.signal(15, signal.SIG_IGN); open({str(ready)!r}, 'w'); signal.pause()"
    supervisor = ShardSupervisor([python(stubborn)], clock=MonotonicClock())
    task = asyncio.create_task(supervisor.run())
    while not ready.exists():  # noqa: ASYNC110  # another process makes it
        await asyncio.sleep(0.005)
    [pid] = supervisor.pids.values()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_standard_input_closes_with_the_supervisor() -> None:
    """What `exit_with_parent` relies on: the child reads the end of its input when nobody holds the pipe."""
    script = (
        "import asyncio, sys\n"
        "from headrace.contract.clock import MonotonicClock\n"
        "from headrace.services.log import LogFormat, LogLevel, configure\n"
        "from headrace.services.shard_supervisor import ShardSupervisor\n"
        "configure(level=LogLevel.INFO, style=LogFormat.AUTO)\n"
        "child = [sys.executable, '-S', '-c', 'import sys; sys.stdin.read(); print(1, flush=True)']\n"
        "sibling = [sys.executable, '-S', '-c', 'import time; time.sleep(60)']\n"
        "supervisor = ShardSupervisor([child, sibling], clock=MonotonicClock())\n"
        "async def main():\n"
        "    task = asyncio.ensure_future(supervisor.run())\n"
        "    while len(supervisor.pids) < 2: await asyncio.sleep(0.01)\n"
        "    print(*supervisor.pids.values(), flush=True)\n"
        "    await task\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        _child, sibling = map(int, (await process.stdout.readline()).split())
    finally:
        process.kill()
    try:
        assert await asyncio.wait_for(process.stdout.readline(), 10) == b"1\n"
    finally:
        os.kill(sibling, signal.SIGKILL)
    await process.communicate()
