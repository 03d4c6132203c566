"""What the kernel says of processes: who descends from whom, and how much processor time they took."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(process_id: int) -> float:
    """Returns the processor time of one process, its threads included and its children not; 0 if it is gone."""
    fields = _fields(process_id)
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S if fields else 0.0


def tree_cpu_s(process_id: int) -> float:
    """Returns the processor time of a process and of all its descendants that live."""
    return sum(cpu_s(member) for member in tree(process_id))


def tree(process_id: int) -> list[int]:
    """Returns a process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (fields := _fields(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    members = [process_id]
    for member in members:  # grows while it is read
        members.extend(children.get(member, ()))
    return members


def send_signal(process_id: int, number: signal.Signals) -> None:
    """Sends a signal to a process and all its descendants that live."""
    for member in tree(process_id):
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, number)


class LoadWatch:
    """Watches who takes processor time beside the system that is measured."""

    def __init__(self, *, measured: int, idle: Iterable[int]) -> None:
        """Begins to watch: the process that is measured, and those that should be idle."""
        self._measured = measured
        self._idle = tuple(idle)
        self._began_s = time.perf_counter()
        self._before = self._sums()

    def shares(self) -> tuple[float, float]:
        """Returns how much of one core the idle systems took, and how much the rest of the machine, since the start."""
        passed_s = time.perf_counter() - self._began_s
        idle_s, foreign_s = (now_s - then_s for now_s, then_s in zip(self._sums(), self._before, strict=True))
        return idle_s / passed_s, foreign_s / passed_s

    def _sums(self) -> tuple[float, float]:
        idle_s = sum(tree_cpu_s(process_id) for process_id in self._idle)
        known_s = idle_s + tree_cpu_s(self._measured) + cpu_s(os.getpid())
        return idle_s, machine_cpu_s() - known_s


def machine_cpu_s() -> float:
    """Returns the processor time that all processes and the kernel took since the machine started."""
    user, nice, system, _idle, _io_wait, *rest = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(map(int, (user, nice, system, *rest[:2]))) / _TICKS_PER_S


def _fields(process_id: int) -> list[str]:
    """Returns the fields of `stat` that follow the name, which may hold blanks; none if the process is gone."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
