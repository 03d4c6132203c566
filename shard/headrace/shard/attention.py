"""A model's way to attention: what a step's tokens share, and one layer's part."""

from dataclasses import dataclass

import torch

from headrace.kernels.attention_batch import AttentionBatch
from headrace.kernels.dispatch import Kernels
from headrace.shard.kv_cache import LayerCache


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardResult:
    """What a step computed."""

    logits: torch.Tensor
    """[sampling, vocabulary], in the model's dtype."""
    hidden: torch.Tensor
    """[output - sampling, hidden] after the last norm, in the model's dtype."""


class PagedAttention:
    """The attention of one layer, over its part of the KV cache."""

    def __init__(self, *, kernels: Kernels, cache: LayerCache, cos_sin: torch.Tensor, scale: float) -> None:
        """Keeps references; `cos_sin` is [position, head_dim] float32, shared by all layers."""
        self._kernels = kernels
        self._cache = cache
        self._cos_sin = cos_sin
        self._scale = scale

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, batch: ForwardBatch
    ) -> torch.Tensor:
        """Rotates, writes keys and values to the cache, and attends.

        Args:
            query: [token, head, head_dim]
            key: [token, kv_head, head_dim]
            value: [token, kv_head, head_dim]
            batch: The step.

        Returns:
            [token, head * head_dim]
        """
        rotated = self._kernels.rotary_and_write_kv(
            query,
            key,
            value,
            positions=batch.positions,
            cos_sin=self._cos_sin,
            key_cache=self._cache.keys,
            value_cache=self._cache.values,
            slot_ids=batch.slot_ids,
        )
        attended = self._kernels.paged_attention(
            rotated, self._cache.keys, self._cache.values, batch.attention, scale=self._scale
        )
        return attended.flatten(1)
