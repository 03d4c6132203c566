"""Weights in fewer bits than they were trained in."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch


class WeightFormat(StrEnum):
    """How linear layers keep their weights."""

    AUTO = "auto"
    """As the file packs them, where the operators can read that, else as is fastest, which may take some more memory;
    the results are the same."""
    COMPACT = "compact"
    """Bfloat16 in twelve bits without loss, where the operators can read that, and otherwise plain."""
    PLAIN = "plain"
    """In the type that they come in."""
    INT8 = "int8"
    """In 8-bit integers with one scale per output. The arithmetic stays in the type of the input, or is that of
    integers over inputs that have lost at most a 64,516th of their row's largest element."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockWeight:
    """A weight in blocks of 32 inputs, as GGUF files hold it (Q4_0, Q4_1, Q8_0).

    An element is `value * scale + minimum` of its block. The product is a float32
    without rounding.
    """

    values: torch.Tensor
    """[out_feature, in_feature]: int8, or uint8 below 16 if there are minima."""
    scales: torch.Tensor
    """[out_feature, in_feature / 32] float16, finite."""
    minima: torch.Tensor | None = None
    """Like the scales."""

    @property
    def shape(self) -> torch.Size:
        """[out_feature, in_feature]."""
        return self.values.shape


def expand(weight: BlockWeight, dtype: torch.dtype) -> torch.Tensor:
    """Returns [out_feature, in_feature] in a floating-point type, rounded to it."""
    blocks = weight.values.view(*weight.scales.shape, -1).to(torch.float32) * weight.scales[..., None].to(torch.float32)
    if weight.minima is not None:
        blocks = blocks + weight.minima[..., None].to(torch.float32)
    return blocks.view(weight.shape).to(dtype)


def stack(weights: Sequence[BlockWeight]) -> BlockWeight | None:
    """Returns several weights of as many inputs as one, each below the one before; None if they are not of one kind."""
    minima = [weight.minima for weight in weights if weight.minima is not None]
    if len(minima) not in (0, len(weights)):
        return None
    return BlockWeight(
        values=torch.cat([weight.values for weight in weights]),
        scales=torch.cat([weight.scales for weight in weights]),
        minima=torch.cat(minima) if minima else None,
    )


class QuantizedWeight(NamedTuple):
    """A weight whose row i is `values[i] * scales[i]`, about."""

    values: torch.Tensor
    """[out_feature, in_feature] int8, in [-127, 127]."""
    scales: torch.Tensor
    """[out_feature] float32."""


def quantize(weight: torch.Tensor) -> QuantizedWeight:
    """Rounds each row to whole multiples of a 127th of its largest magnitude.

    Args:
        weight: [out_feature, in_feature], finite.
    """
    wide = weight.to(torch.float32)
    scales = wide.abs().amax(dim=1) / 127
    # A row of zeros has no scale to divide by.
    values = (wide / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round()
    return QuantizedWeight(values.clamp(-127, 127).to(torch.int8), scales)


def dequantize(weight: QuantizedWeight, dtype: torch.dtype) -> torch.Tensor:
    """Returns [out_feature, in_feature] in another type, rounded to it."""
    return (weight.values * weight.scales[:, None]).to(dtype)
