"""Log-probabilities of the tokens of one step."""

from typing import NamedTuple

import torch


class TokenLogprobs(NamedTuple):
    """One token per row, and its likeliest rivals."""

    logprobs: torch.Tensor
    """[row] float32, natural logarithm."""
    ranks: torch.Tensor
    """[row] int64; 1 when no token is likelier."""
    top_token_ids: torch.Tensor
    """[row, top_count] int64, likeliest first, the lowest id among equals."""
    top_logprobs: torch.Tensor
    """[row, top_count] float32."""
