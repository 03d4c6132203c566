"""The adapters of one step, put together for the model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.kernels.low_rank import DecoderStacks, PartSizes, stack_adapters
from headrace.shard.lora_weights import LoraWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class StepAdapters:
    """The adapters of a step's rows, of which at least one has one."""

    row_indices: NDArray[np.int64]
    """[computing] the row's adapter among those of the step; -1 for none."""
    stacks: DecoderStacks
    """What they add."""


class AdapterStacks:
    """Puts adapters together, and keeps what it made for the step before: the next one mostly has the same."""

    def __init__(self, sizes: PartSizes) -> None:
        self._sizes = sizes
        self._last: tuple[tuple[LoraWeights, ...], DecoderStacks] | None = None

    def select(self, weights: Sequence[LoraWeights], row_indices: NDArray[np.int64]) -> StepAdapters | None:
        """Returns the adapters of a step as the model takes them; None if no row has one."""
        if not weights:
            return None
        if self._last is None or self._last[0] != tuple(weights):
            self._last = (tuple(weights), stack_adapters([adapter.layers for adapter in weights], self._sizes))
        return StepAdapters(row_indices=row_indices, stacks=self._last[1])

    def forget(self) -> None:
        """Lets go of adapters that nobody may use any more."""
        self._last = None
