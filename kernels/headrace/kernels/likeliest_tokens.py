"""The likeliest tokens of one step."""

from typing import NamedTuple

import torch


class LikeliestTokens(NamedTuple):
    """One token per row, and its logit."""

    token_ids: torch.Tensor
    """[row] int64, the lowest id among equals; any where the logit is not finite."""
    logits: torch.Tensor
    """[row] float32; NaN when one of the row's logits is."""
