"""What a model takes for a step, and what it returns."""

from dataclasses import dataclass

import torch

from headrace.kernels.attention_batch import AttentionBatch
from headrace.kernels.likeliest_tokens import LikeliestTokens
from headrace.kernels.low_rank import TokenAdapters


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBatch:
    """The tokens of one step, in one flat batch without padding, on the model's device."""

    token_ids: torch.Tensor
    """[token] int64"""
    positions: torch.Tensor
    """[token] int64, index in the token's sequence."""
    slot_ids: torch.Tensor
    """[token] int64, place in the KV cache."""
    output_indices: torch.Tensor
    """[output] int64: the tokens of which something is wanted. First those of `sampling_count` rows, in row order,
    whose logits are; then those whose hidden states are."""
    sampling_count: int
    attention: AttentionBatch
    wants_logits: bool = True
    """Whether more than the likeliest token of each sampling row is wanted."""
    adapters: TokenAdapters | None = None
    """What is added to the linear layers for tokens with an adapter; None if no token has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardResult:
    """What a step computed."""

    logits: torch.Tensor | LikeliestTokens
    """[sampling, vocabulary], in the model's dtype; or only what is the largest, where no more is wanted."""
    hidden: torch.Tensor
    """[output - sampling, hidden] after the last norm, in the model's dtype."""
