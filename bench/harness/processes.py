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


class IdleWatch:
    """Watches that processes which should be idle take no processor time from the one that is measured."""

    def __init__(self, process_ids: Iterable[int]) -> None:
        self._process_ids = tuple(process_ids)
        self._began_s = time.perf_counter()
        self._used_s = self._sum()

    def share(self) -> float:
        """Returns the part of one core that they took together since the watch began."""
        return (self._sum() - self._used_s) / (time.perf_counter() - self._began_s)

    def _sum(self) -> float:
        return sum(tree_cpu_s(process_id) for process_id in self._process_ids)


def _fields(process_id: int) -> list[str]:
    """Returns the fields of `stat` that follow the name, which may hold blanks; none if the process is gone."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
