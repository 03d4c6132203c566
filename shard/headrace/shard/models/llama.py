"""The Llama decoder, which Mistral and Qwen2 share: RMSNorm, rotary attention with grouped heads, a gated MLP."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from headrace.kernels.dispatch import Kernels
from headrace.kernels.linear import PackedLinear
from headrace.shard.attention import ForwardBatch, ForwardResult, PagedAttention
from headrace.shard.models.config import ModelConfig
from headrace.shard.weights import WeightReader


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaLayer:
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
class LlamaWeights:
    """The weights of the whole decoder."""

    embedding: torch.Tensor
    """[vocabulary, hidden]"""
    layers: tuple[LlamaLayer, ...]
    final_norm: torch.Tensor
    """[hidden]"""
    head: PackedLinear
    """hidden → vocabulary"""


class LlamaModel:
    """A decoder over weights and the attention of each layer."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        weights: LlamaWeights,
        attentions: tuple[PagedAttention, ...],
        kernels: Kernels,
    ) -> None:
        self._config = config
        self._weights = weights
        self._attentions = attentions
        self._kernels = kernels

    def forward(self, batch: ForwardBatch) -> ForwardResult:
        """Computes a step: fills the KV cache and returns logits and hidden states where they are wanted."""
        kernels, layers, epsilon = self._kernels, self._weights.layers, self._config.norm_epsilon
        residual = functional.embedding(batch.token_ids, self._weights.embedding)
        normed = kernels.rms_norm(residual, layers[0].input_norm, epsilon)
        next_norms = [layer.input_norm for layer in layers[1:]] + [self._weights.final_norm]
        for layer, attention, next_norm in zip(layers, self._attentions, next_norms, strict=True):
            attended = self._attend(layer, attention, normed, batch)
            if layer is layers[-1]:
                # Nothing reads the other tokens any more.
                attended, residual = attended[batch.output_indices], residual[batch.output_indices]
            x = layer.attention_output(attended)
            normed, residual = kernels.add_rms_norm(x, residual, layer.mlp_norm, epsilon)
            x = layer.down(layer.gated(normed))
            normed, residual = kernels.add_rms_norm(x, residual, next_norm, epsilon)
        count = batch.sampling_count
        return ForwardResult(logits=self._weights.head(normed[:count]), hidden=normed[count:])

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the logits of hidden states that `forward` returned."""
        return self._weights.head(hidden)

    def _attend(
        self, layer: LlamaLayer, attention: PagedAttention, normed: torch.Tensor, batch: ForwardBatch
    ) -> torch.Tensor:
        config = self._config
        heads = layer.query_key_value(normed).view(normed.shape[0], -1, config.head_dim)
        query, key, value = torch.split(heads, [config.head_count, config.kv_head_count, config.kv_head_count], dim=1)
        return attention(query, key, value, batch)


def load_llama_weights(config: ModelConfig, reader: WeightReader, kernels: Kernels) -> LlamaWeights:
    """Reads every weight of the decoder.

    Raises:
        StartupError: a tensor is missing or has another shape than the configuration means.
    """
    embedding = reader.read("model.embed_tokens.weight", config.vocabulary_size, config.hidden_size)
    layers = tuple(_load_layer(config, reader, kernels, f"model.layers.{index}") for index in range(config.layer_count))
    if config.ties_embeddings:
        reader.skip("lm_head.weight")
        head = embedding
    else:
        head = reader.read("lm_head.weight", config.vocabulary_size, config.hidden_size)
    return LlamaWeights(
        embedding=embedding,
        layers=layers,
        final_norm=reader.read("model.norm.weight", config.hidden_size),
        head=kernels.pack_linear(head),
    )


def _load_layer(config: ModelConfig, reader: WeightReader, kernels: Kernels, prefix: str) -> LlamaLayer:
    hidden, inner = config.hidden_size, config.inner_size
    query_size, kv_size = config.head_count * config.head_dim, config.kv_head_count * config.head_dim

    def linear(
        name_format: str,
        heights: dict[str, int],
        width: int,
        pack: Callable[[torch.Tensor, torch.Tensor | None], PackedLinear] = kernels.pack_linear,
    ) -> PackedLinear:
        first = next(iter(heights))
        weight = reader.read_stacked(f"{prefix}.{name_format}.weight", heights, width)
        has_bias = reader.has(f"{prefix}.{name_format}.bias".format(first))
        bias = reader.read_stacked(f"{prefix}.{name_format}.bias", heights) if has_bias else None
        return pack(weight, bias)

    return LlamaLayer(
        input_norm=reader.read(f"{prefix}.input_layernorm.weight", hidden),
        query_key_value=linear("self_attn.{}_proj", {"q": query_size, "k": kv_size, "v": kv_size}, hidden),
        attention_output=linear("self_attn.{}_proj", {"o": hidden}, query_size),
        mlp_norm=reader.read(f"{prefix}.post_attention_layernorm.weight", hidden),
        gated=linear("mlp.{}_proj", {"gate": inner, "up": inner}, hidden, kernels.pack_gated_linear),
        down=linear("mlp.{}_proj", {"down": hidden}, inner),
    )
