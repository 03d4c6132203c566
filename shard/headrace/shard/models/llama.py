"""The Llama decoder, which Mistral and Qwen2 share: RMSNorm, rotary attention with grouped heads, a gated MLP."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from headrace.kernels.decoder import Decoder, DecoderLayer, DecoderParts, DecoderStep
from headrace.kernels.dispatch import Kernels
from headrace.kernels.head import Head, PlainHead
from headrace.kernels.linear import PackedLinear
from headrace.shard.forward_batch import ForwardBatch, ForwardResult
from headrace.shard.kv_cache import LayerCache
from headrace.shard.models.config import ModelConfig
from headrace.shard.weights import WeightReader


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaWeights:
    """The weights of the whole decoder."""

    embedding: torch.Tensor
    """[vocabulary, hidden]"""
    layers: tuple[DecoderLayer, ...]
    final_norm: torch.Tensor
    """[hidden]"""
    head: Head
    """hidden → vocabulary"""


class LlamaModel:
    """A decoder between an embedding and a head."""

    def __init__(self, *, embedding: torch.Tensor, decoder: Decoder, head: Head) -> None:
        self._embedding = embedding
        self._decoder = decoder
        self._head = head

    def forward(self, batch: ForwardBatch) -> ForwardResult:
        """Computes a step: fills the KV cache and returns logits and hidden states where they are wanted."""
        step = DecoderStep(
            positions=batch.positions,
            slot_ids=batch.slot_ids,
            attention=batch.attention,
            output_indices=batch.output_indices,
            adapters=batch.adapters,
        )
        normed = self._decoder(functional.embedding(batch.token_ids, self._embedding), step)
        sampled, hidden = normed[: batch.sampling_count], normed[batch.sampling_count :]
        logits = self._head(sampled) if batch.wants_logits else self._head.likeliest(sampled)
        return ForwardResult(logits=logits, hidden=hidden)

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the logits of hidden states that `forward` returned."""
        return self._head(hidden)


def build_llama(
    config: ModelConfig, weights: LlamaWeights, caches: Sequence[LayerCache], cos_sin: torch.Tensor, kernels: Kernels
) -> LlamaModel:
    """Completes a model with the KV cache of each layer.

    Args:
        config: What the model is made of.
        weights: Its weights, packed by `kernels`.
        caches: One for each layer.
        cos_sin: [position, head_dim] float32.
        kernels: The version of the operators.
    """
    parts = DecoderParts(
        layers=weights.layers,
        final_norm=weights.final_norm,
        key_caches=tuple(cache.keys for cache in caches),
        value_caches=tuple(cache.values for cache in caches),
        cos_sin=cos_sin,
        head_count=config.head_count,
        head_dim=config.head_dim,
        norm_epsilon=config.norm_epsilon,
        scale=config.head_dim**-0.5,
    )
    return LlamaModel(embedding=weights.embedding, decoder=kernels.build_decoder(parts), head=weights.head)


def load_llama_weights(config: ModelConfig, reader: WeightReader, kernels: Kernels) -> LlamaWeights:
    """Reads every weight of the decoder.

    Raises:
        StartupError: a tensor is missing or has another shape than the configuration means.
    """
    embedding = reader.read("model.embed_tokens.weight", config.vocabulary_size, config.hidden_size)
    layers = tuple(_load_layer(config, reader, kernels, f"model.layers.{index}") for index in range(config.layer_count))
    return LlamaWeights(
        embedding=embedding,
        layers=layers,
        final_norm=reader.read("model.norm.weight", config.hidden_size),
        head=_load_head(config, reader, kernels, embedding),
    )


def _load_head(config: ModelConfig, reader: WeightReader, kernels: Kernels, embedding: torch.Tensor) -> Head:
    """Reads the projection to the vocabulary, or makes it of the embedding where they are one."""
    size = (config.vocabulary_size, config.hidden_size)
    if config.ties_embeddings:
        reader.skip("lm_head.weight")
        blocks = reader.blocks_again("model.embed_tokens.weight")
    else:
        blocks = reader.blocks("lm_head.{}", {"weight": config.vocabulary_size}, config.hidden_size)
    if blocks is not None:
        return PlainHead(kernels.pack_blocks(blocks, dtype=reader.dtype), kernels.likeliest)
    return kernels.pack_head(embedding if config.ties_embeddings else reader.read("lm_head.weight", *size))


def _load_layer(config: ModelConfig, reader: WeightReader, kernels: Kernels, prefix: str) -> DecoderLayer:
    hidden, inner = config.hidden_size, config.inner_size
    query_size, kv_size = config.head_count * config.head_dim, config.kv_head_count * config.head_dim

    def linear(
        name_format: str,
        heights: dict[str, int],
        width: int,
        *,
        is_gated: bool = False,
    ) -> PackedLinear:
        first = next(iter(heights))
        has_bias = reader.has(f"{prefix}.{name_format}.bias".format(first))
        bias = reader.read_stacked(f"{prefix}.{name_format}.bias", heights) if has_bias else None
        blocks = reader.blocks(f"{prefix}.{name_format}.weight", heights, width)
        if blocks is not None:
            return kernels.pack_blocks(blocks, bias, dtype=reader.dtype, is_gated=is_gated)
        weight = reader.read_stacked(f"{prefix}.{name_format}.weight", heights, width)
        return (kernels.pack_gated_linear if is_gated else kernels.pack_linear)(weight, bias)

    return DecoderLayer(
        input_norm=reader.read(f"{prefix}.input_layernorm.weight", hidden),
        query_key_value=linear("self_attn.{}_proj", {"q": query_size, "k": kv_size, "v": kv_size}, hidden),
        attention_output=linear("self_attn.{}_proj", {"o": hidden}, query_size),
        mlp_norm=reader.read(f"{prefix}.post_attention_layernorm.weight", hidden),
        gated=linear("mlp.{}_proj", {"gate": inner, "up": inner}, hidden, is_gated=True),
        down=linear("mlp.{}_proj", {"down": hidden}, inner),
    )
