"""Rotary position embedding: frequencies, the ways to stretch them, and the table of cosines and sines."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling:
    """Positions are divided by a factor."""

    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Low frequencies are divided by a factor, high ones are kept, those between are blended."""

    factor: float
    low_frequency_factor: float
    """Turns in the original context up to which a frequency is low."""
    high_frequency_factor: float
    """Turns in the original context from which a frequency is high."""
    original_context_token_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DivisorScaling:
    """Each frequency has a divisor of its own, as GGUF files store them."""

    divisors: tuple[float, ...]
    """As many as there are frequencies: half the rotated size."""


RotaryScaling = LinearScaling | Llama3Scaling | DivisorScaling


def build_table(*, size: int, base: float, scaling: RotaryScaling | None, position_count: int) -> torch.Tensor:
    """Returns [position, size] float32: cosines in the first half, sines in the second.

    Args:
        size: Rotated elements of a head; even.
        base: The wavelengths are 2 * pi * base**(2 * i / size).
        scaling: How the frequencies are stretched.
        position_count: Length of the longest sequence.
    """
    frequencies = _scale(1.0 / base ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size), scaling)
    angles = torch.outer(torch.arange(position_count, dtype=torch.float32), frequencies)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def _scale(frequencies: torch.Tensor, scaling: RotaryScaling | None) -> torch.Tensor:
    match scaling:
        case None:
            return frequencies
        case LinearScaling(factor=factor):
            return frequencies / factor
        case DivisorScaling(divisors=divisors):
            return frequencies / torch.tensor(divisors)
        case Llama3Scaling():
            return _scale_as_llama3(frequencies, scaling)


def _scale_as_llama3(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    turns = scaling.original_context_token_count * frequencies / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept_share = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - kept_share) * frequencies / scaling.factor + kept_share * frequencies
