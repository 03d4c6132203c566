"""Measures how much memory a process may still take."""

from pathlib import Path

import torch


def available_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Returns the bytes that can be allocated on a device without harming others.

    On a CPU that is what the kernel calls available, or what the control group
    has left if that is less.

    Args:
        device: Where.
        root: Where `proc` and `sys` are.
    """
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        return free_bytes
    machine_bytes = _meminfo_available(root / "proc/meminfo")
    group_bytes = _group_available(root / "sys/fs/cgroup")
    return machine_bytes if group_bytes is None else min(machine_bytes, group_bytes)


def _meminfo_available(path: Path) -> int:
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise OSError(f"{path} has no MemAvailable")


def _group_available(folder: Path) -> int | None:
    """Returns what is left of a version 2 control group's limit, None without one."""
    limit, used = folder / "memory.max", folder / "memory.current"
    if not limit.exists() or not used.exists():
        return None
    limit_text = limit.read_text().strip()
    return None if limit_text == "max" else max(0, int(limit_text) - int(used.read_text()))
