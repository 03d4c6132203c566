"""Weights in fewer bits than they were trained in."""

from enum import StrEnum
from typing import NamedTuple

import torch


class WeightFormat(StrEnum):
    """How linear layers keep their weights."""

    PLAIN = "plain"
    """In the type that they come in."""
    INT8 = "int8"
    """In 8-bit integers with one scale per output; the arithmetic stays in the type of the input."""


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
