"""How fast the machine is at the moment, by the same little jobs each time.

A virtual machine has neighbours, and its host may slow its units down one by one.
What that did to a system while it was measured cannot be known afterwards, so it
is measured beside the runs.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache

import torch

_LEAST_S = 0.03
_WIDTH = 1024
_ROW_COUNT = 256
_READ_BYTES = 1 << 28
_LOOP_COUNT = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What the machine did per second."""

    products: float
    """TFLOP/s of a product of bfloat16 matrices that lie in the caches, on all cores."""
    reads: float
    """GB/s read from memory, on all cores."""
    loops: float
    """Millions of rounds of an empty Python loop, on one core."""


def measure_pace() -> Pace:
    """Takes some tenth of a second."""
    rows, weight, memory = _operands()
    multiply = torch.ops.mkldnn._linear_pointwise.default  # torch.mm took twenty times as long
    return Pace(
        products=_rate(lambda: multiply(rows, weight, None, "none", [], "")) * 2 * _ROW_COUNT * _WIDTH * _WIDTH / 1e12,
        reads=_rate(memory.sum) * _READ_BYTES / 1e9,
        loops=_rate(_loop) * _LOOP_COUNT / 1e6,
    )


class PaceLog:
    """The pace beside the runs of each system."""

    def __init__(self) -> None:
        self._last = measure_pace()
        self._paces: dict[str, dict[str, list[float]]] = {}

    def add(self, system: str, *, counts: bool) -> None:
        """Measures after a run of a system; its pace is the mean of before and after.

        Args:
            system: What ran since the last call, or since this was made.
            counts: Whether the run is kept: one that only warms up is not.
        """
        before, self._last = self._last, measure_pace()
        if not counts:
            return
        kept = self._paces.setdefault(system, {})
        for name, value in asdict(self._last).items():
            kept.setdefault(name, []).append((value + getattr(before, name)) / 2)

    def as_dict(self) -> Mapping[str, Mapping[str, Sequence[float]]]:
        """Returns each system's values of `Pace`, one for each of its runs."""
        return self._paces


@cache
def _operands() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(1)
    rows = torch.randn(_ROW_COUNT, _WIDTH, generator=source).bfloat16()
    weight = torch.randn(_WIDTH, _WIDTH, generator=source).bfloat16()
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROW_COUNT)
    return rows, packed, torch.ones(_READ_BYTES // 4)


def _loop() -> None:
    for _ in range(_LOOP_COUNT):
        pass


def _rate(job: Callable[[], object]) -> float:
    """Returns how often a second a job was done, over a while: what is slow for moments counts."""
    job()
    began_s = time.perf_counter()
    count = 0
    while (passed_s := time.perf_counter() - began_s) < _LEAST_S:
        job()
        count += 1
    return count / passed_s
