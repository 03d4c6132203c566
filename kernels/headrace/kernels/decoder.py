"""A decoder's layers: what they are made of, and how they run one operator after the other."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from headrace.kernels.attention_batch import AttentionBatch, check_scale
from headrace.kernels.linear import PackedLinear
from headrace.kernels.low_rank import LowRankStack, TokenAdapters

if TYPE_CHECKING:
    from headrace.kernels.dispatch import Kernels


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLayer:
    """The weights of one layer. Projections that read the same input are merged."""

    input_norm: torch.Tensor
    """[hidden]"""
    query_key_value: PackedLinear
    """hidden → (head + 2 * kv_head) * head_dim"""
    attention_output: PackedLinear
    """head * head_dim → hidden"""
    mlp_norm: torch.Tensor
    """[hidden]"""
    gated: PackedLinear
    """hidden → inner, the gating included"""
    down: PackedLinear
    """inner → hidden"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderParts:
    """A decoder's layers with the KV cache that they fill."""

    layers: tuple[DecoderLayer, ...]
    final_norm: torch.Tensor
    """[hidden]"""
    key_caches: tuple[torch.Tensor, ...]
    """Of each layer, [block, kv_head, block_size, head_dim]."""
    value_caches: tuple[torch.Tensor, ...]
    """Of each layer, like the keys'."""
    cos_sin: torch.Tensor
    """[position, rotary_dim] float32: cosines, then sines, rotary_dim / 2 of each."""
    head_count: int
    head_dim: int
    norm_epsilon: float
    scale: float
    """Factor of the scores before the softmax; a ValueError unless it is positive and finite."""

    def __post_init__(self) -> None:
        check_scale(self.scale)

    @property
    def kv_head_count(self) -> int:
        """Heads of the keys, and of the values."""
        return self.key_caches[0].shape[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderStep:
    """What a decoder is told of the tokens of one step, beside what they are."""

    positions: torch.Tensor
    """[token] int64"""
    slot_ids: torch.Tensor
    """[token] int64, all different."""
    attention: AttentionBatch
    """What `prepare_attention` of the same version of the operators returned for the step."""
    output_indices: torch.Tensor
    """[output] int64, tokens in any order: those whose hidden states are wanted."""
    adapters: TokenAdapters | None = None
    """What is added to the linear layers for some tokens; the others are not affected."""


class Decoder(Protocol):
    """The layers of a pre-norm decoder with rotary attention and a gated MLP, from the embedding to the last norm."""

    def __call__(self, residual: torch.Tensor, step: DecoderStep) -> torch.Tensor:
        """Fills the KV cache and returns the hidden states of some tokens.

        Args:
            residual: [token, hidden], the embedded tokens; may be overwritten.
            step: Where they stand, and which hidden states are wanted.

        Returns:
            [output, hidden], normalised.
        """
        ...


class ComposedDecoder:
    """Runs a version's operators one by one."""

    def __init__(self, parts: DecoderParts, kernels: "Kernels") -> None:
        self._parts = parts
        self._kernels = kernels

    def __call__(self, residual: torch.Tensor, step: DecoderStep) -> torch.Tensor:
        """Returns [output, hidden]."""
        adapters = step.adapters
        parts, kernels, epsilon = self._parts, self._kernels, self._parts.norm_epsilon
        layers = parts.layers
        stacks = (None,) * len(layers) if adapters is None else adapters.stacks.layers
        token_adapters = None if adapters is None else adapters.indices
        normed = kernels.rms_norm(residual, layers[0].input_norm, epsilon)
        next_norms = (*(layer.input_norm for layer in layers[1:]), parts.final_norm)
        for layer, stack, next_norm, key_cache, value_cache in zip(
            layers, stacks, next_norms, parts.key_caches, parts.value_caches, strict=True
        ):
            to_query_key_value, to_output, to_gated, to_down = (None,) * 4 if stack is None else stack.linears
            merged = self._linear(layer.query_key_value, normed, to_query_key_value, token_adapters)
            heads = merged.view(normed.shape[0], -1, parts.head_dim)
            query, key, value = torch.split(heads, [parts.head_count, parts.kv_head_count, parts.kv_head_count], dim=1)
            rotated = kernels.rotary_and_write_kv(
                query,
                key,
                value,
                positions=step.positions,
                cos_sin=parts.cos_sin,
                key_cache=key_cache,
                value_cache=value_cache,
                slot_ids=step.slot_ids,
            )
            attended = kernels.paged_attention(
                rotated, key_cache, value_cache, step.attention, scale=parts.scale
            ).flatten(1)
            if layer is layers[-1]:
                # Nothing reads the other tokens any more.
                wanted = step.output_indices
                attended, residual = attended[wanted], residual[wanted]
                token_adapters = None if token_adapters is None else token_adapters[wanted]
            x = self._linear(layer.attention_output, attended, to_output, token_adapters)
            normed, residual = kernels.add_rms_norm(x, residual, layer.mlp_norm, epsilon)
            inner = self._linear(layer.gated, normed, to_gated, token_adapters)
            x = self._linear(layer.down, inner, to_down, token_adapters)
            normed, residual = kernels.add_rms_norm(x, residual, next_norm, epsilon)
        return normed

    def _linear(
        self, linear: PackedLinear, x: torch.Tensor, stack: LowRankStack | None, token_adapters: torch.Tensor | None
    ) -> torch.Tensor:
        if stack is None or stack.is_empty or token_adapters is None:
            return linear(x)
        return linear(x, self._kernels.low_rank(x, token_adapters, stack))
