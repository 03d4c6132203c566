"""How the rows of one step lie in the flat token batch and in the KV blocks."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionBatch:
    """Facts for the attention of one step, the same in every layer.

    Each row brings the last `query_starts[i + 1] - query_starts[i]` tokens of
    its first `context_lengths[i]`. Decoding brings one token, a prefill chunk
    several, and what was computed before, by this sequence or by another with
    the same prefix, is in the blocks already. A version of the operators may
    subclass this with what it wants to work out once per step.
    """

    block_tables: torch.Tensor
    """[row, block] int32; entries past a row's context mean nothing."""
    query_starts: torch.Tensor
    """[row + 1] int32, from 0, ascending: where each row's tokens start in the batch."""
    context_lengths: torch.Tensor
    """[row] int32: tokens that the row's last token attends to, itself included."""


def check_scale(scale: float) -> None:
    """Makes sure that a factor of the scores leaves their order as it is; fast versions rely on it.

    Raises:
        ValueError: it is not positive and finite.
    """
    if not (scale > 0.0 and math.isfinite(scale)):
        raise ValueError(f"the scale of attention must be positive and finite, is {scale}")
