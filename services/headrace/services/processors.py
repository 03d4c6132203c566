"""The processors that this process may use: its cores, and how much of them."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True, slots=True, kw_only=True)
class Processors:
    """What the system grants, by the numbers that it gives to logical processors."""

    allowed: tuple[int, ...]
    """All that the process may run on, in order. Empty where the system does not tell."""
    cores: tuple[int, ...]
    """The first of each physical core's: two threads that multiply on one core are no faster than one."""
    quota: float | None = None
    """How many of them the process may keep busy at a time, as containers are limited; None for all."""


def read_processors(root: Path = Path("/")) -> Processors:
    """Returns what the calling thread may use now.

    Args:
        root: Where the system's own file systems are found.
    """
    if not hasattr(os, "sched_getaffinity"):
        count = os.cpu_count() or 1
        return Processors(allowed=(), cores=tuple(range(count)))
    allowed = tuple(sorted(os.sched_getaffinity(0)))
    return Processors(allowed=allowed, cores=_first_of_cores(allowed, root), quota=_read_quota(root))


def parse_processors(text: str) -> tuple[int, ...]:
    """Returns the processors of a list such as `0-3,8`, in its order.

    Raises:
        ValueError: it is no such list, or names one twice.
    """
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not (first.isdecimal() and (last.isdecimal() if dash else True)):
            raise ValueError(f"{text!r} is no list of processors such as 0-3,8")
        numbers.extend(range(int(first), int(last if dash else first) + 1))
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"{text!r} has to name processors, each of them once")
    return tuple(numbers)


def format_processors(numbers: Iterable[int]) -> str:
    """Returns a list that `parse_processors` understands."""
    return ",".join(map(str, numbers))


def _first_of_cores(allowed: tuple[int, ...], root: Path) -> tuple[int, ...]:
    taken: set[int] = set()
    firsts = []
    for number in allowed:
        if number in taken:
            continue
        firsts.append(number)
        path = root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"
        try:
            taken.update(parse_processors(path.read_text().strip()))
        except (OSError, ValueError):
            taken.add(number)
    return tuple(firsts)


def _read_quota(root: Path) -> float | None:
    """Returns the least quota of the process's control group and those around it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        # A container may see its own group at the mount's root, under whatever name the host has for it.
        for folder in (PurePosixPath(group), *PurePosixPath(group).parents):
            quota = _quota_of(mount / folder.relative_to("/"))
            if quota is not None:
                quotas.append(quota)
    return min(quotas, default=None)


def _quota_of(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return None if quota == "max" or int(quota) < 0 else int(quota) / int(period)
    except (OSError, ValueError):
        return None
