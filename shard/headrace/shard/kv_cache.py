"""Sizes the KV cache by an explained budget, and allocates it."""

import math
import mmap
from dataclasses import dataclass

import torch

from headrace.contract.errors import StartupError
from headrace.shard.models.config import ModelConfig

_AUTOMATIC_SHARE = 0.5
"""Share of the memory that is left after loading. The rest is for activations and for others."""

_HUGE_PAGE_BYTES = 2 << 20
"""Of x86 and ARM. Elsewhere this is an alignment that does no harm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCache:
    """One layer's keys and values."""

    keys: torch.Tensor
    """[block, kv_head, block_size, head_dim]"""
    values: torch.Tensor
    """[block, kv_head, block_size, head_dim]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvBudget:
    """How many blocks there are, and why."""

    block_count: int
    block_size: int
    """In tokens."""
    block_size_bytes: int
    reason: str

    def explain(self) -> str:
        """Returns one line for a person."""
        token_count = self.block_count * self.block_size
        return (
            f"KV cache: {self.block_count} blocks of {self.block_size} tokens = {token_count} tokens,"
            f" {_mebibytes(self.block_count * self.block_size_bytes)} ({self.reason})"
        )


def plan_budget(
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    block_size: int,
    block_count: int,
    memory_bytes: int,
    available_bytes: int,
    most_token_count: int,
) -> KvBudget:
    """Decides how many blocks there are.

    Args:
        config: The model.
        dtype: Of keys and values.
        block_size: Tokens per block.
        block_count: Blocks as asked for; 0 decides by memory.
        memory_bytes: Memory as asked for; 0 takes a share of what is available.
        available_bytes: Memory that is left after loading.
        most_token_count: Tokens beyond which more blocks could never be used; 0 if there is no such number.

    Raises:
        StartupError: the cache would not hold a single sequence of one block, or not fit.
    """
    block_bytes = smallest_budget(config, dtype=dtype, block_size=block_size).block_size_bytes
    if block_count:
        reason = "as block_count says"
    elif memory_bytes:
        block_count = memory_bytes // block_bytes
        reason = f"as kv_memory_bytes says, {_mebibytes(memory_bytes)}"
    else:
        block_count = int(available_bytes * _AUTOMATIC_SHARE) // block_bytes
        reason = f"{_AUTOMATIC_SHARE:.0%} of the {_mebibytes(available_bytes)} left after loading"
        if 0 < (usable := -(-most_token_count // block_size)) < block_count:
            block_count, reason = usable, "all that the largest batch can use"
    if block_count < 1:
        raise StartupError(f"KV cache: not one block of {_mebibytes(block_bytes)} fits ({reason})")
    if block_count * block_bytes > available_bytes:
        raise StartupError(
            f"KV cache: {block_count} blocks need {_mebibytes(block_count * block_bytes)} ({reason}),"
            f" but {_mebibytes(available_bytes)} are left after loading"
        )
    return KvBudget(block_count=block_count, block_size=block_size, block_size_bytes=block_bytes, reason=reason)


def smallest_budget(config: ModelConfig, *, dtype: torch.dtype, block_size: int) -> KvBudget:
    """Returns a cache of a single block."""
    return KvBudget(
        block_count=1,
        block_size=block_size,
        block_size_bytes=2 * config.layer_count * config.kv_head_count * block_size * config.head_dim * dtype.itemsize,
        reason="the smallest",
    )


def allocate(
    config: ModelConfig, budget: KvBudget, *, dtype: torch.dtype, device: torch.device
) -> tuple[LayerCache, ...]:
    """Returns the cache of every layer, holding anything at all.

    It is not cleared: attention does not see what nobody wrote, and memory that
    is far from being used costs neither time nor space then (see `kv_pages`).
    """
    shape = (budget.block_count, config.kv_head_count, budget.block_size, config.head_dim)
    return tuple(
        LayerCache(keys=_zeros(shape, dtype, device), values=_zeros(shape, dtype, device))
        for _ in range(config.layer_count)
    )


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Returns zeros that, on a CPU, take memory only where they are written.

    torch.zeros touches every page; a mapping of the system's own has pages that
    are zero already, so a cache of gigabytes is there at once and costs what is
    used. The pages are huge ones where there are: attention reads keys and values
    all over the cache, and looked up a page of 4 KiB for each few of them. A cache
    below one huge page is that of a warm-up, and would wait for it to be cleared.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size_bytes = math.prod(shape) * dtype.itemsize
    mapping = mmap.mmap(-1, size_bytes + _HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE") and size_bytes >= _HUGE_PAGE_BYTES:
        mapping.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(mapping, dtype=torch.uint8)
    start = -memory.data_ptr() % _HUGE_PAGE_BYTES
    return memory[start : start + size_bytes].view(dtype).view(shape)


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"
