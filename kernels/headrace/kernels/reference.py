"""The reference version of every operator: plain torch, on any device, written to be checked by eye."""

from typing import ClassVar

import torch

from headrace.kernels import reference_attention, reference_sampling
from headrace.kernels.attention_batch import AttentionBatch, check_scale
from headrace.kernels.decoder import ComposedDecoder, Decoder, DecoderParts
from headrace.kernels.head import Head, PlainHead
from headrace.kernels.likeliest_tokens import LikeliestTokens
from headrace.kernels.linear import PackedLinear, PlainGatedLinear, PlainLinear, gate
from headrace.kernels.low_rank import LowRankStack, low_rank
from headrace.kernels.quantization import BlockWeight, WeightFormat, dequantize, expand, quantize
from headrace.kernels.reference_attention import GroupedAttentionBatch
from headrace.kernels.token_logprobs import TokenLogprobs


class ReferenceKernels:
    """Operators in plain torch; headrace.kernels.dispatch.Kernels says what each does."""

    name: ClassVar[str] = "reference"

    def __init__(self, weight_format: WeightFormat = WeightFormat.PLAIN) -> None:
        self._weight_format = weight_format

    @property
    def is_bfloat16_fast(self) -> bool:
        """What torch does with it depends on the device."""
        return False

    def thread_ids(self) -> tuple[int, ...]:
        """Returns none: torch's own operators choose their threads."""
        return ()

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Returns [token, hidden]."""
        wide = x.to(torch.float32)
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + epsilon)
        return normed.to(x.dtype) * weight

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the normalised sum and the sum, both [token, hidden]."""
        total = x + residual
        return self.rms_norm(total, weight, epsilon), total

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Returns [token, inner]."""
        return gate(gate_up)

    def rotary_and_write_kv(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        positions: torch.Tensor,
        cos_sin: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        slot_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Returns the rotated query, [token, head, head_dim]."""
        cosines, sines = cos_sin[positions].to(query.dtype)[:, None, :].chunk(2, dim=-1)
        block_size = key_cache.shape[2]
        blocks, offsets = slot_ids // block_size, slot_ids % block_size
        key_cache[blocks, :, offsets] = _rotate(key, cosines, sines)
        value_cache[blocks, :, offsets] = value
        return _rotate(query, cosines, sines)

    def prepare_attention(
        self, block_tables: torch.Tensor, query_starts: torch.Tensor, context_lengths: torch.Tensor, *, block_size: int
    ) -> AttentionBatch:
        """Returns the rows grouped by shape."""
        return reference_attention.group_rows(block_tables, query_starts, context_lengths, block_size)

    def paged_attention(
        self,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        batch: AttentionBatch,
        *,
        scale: float,
    ) -> torch.Tensor:
        """Returns [token, head, head_dim]."""
        assert isinstance(batch, GroupedAttentionBatch)
        check_scale(scale)
        return reference_attention.attend(query, key_cache, value_cache, batch, scale=scale)

    def pack_linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedLinear:
        """Returns the layer over the weight, rounded as the format asks."""
        return PlainLinear(self._rounded(weight), bias)

    def pack_gated_linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedLinear:
        """Returns the layer over the weight, rounded as the format asks, and its gating."""
        return PlainGatedLinear(self._rounded(weight), bias)

    def pack_blocks(
        self, weight: BlockWeight, bias: torch.Tensor | None = None, *, dtype: torch.dtype, is_gated: bool = False
    ) -> PackedLinear:
        """Returns the layer over the expanded weight."""
        return (PlainGatedLinear if is_gated else PlainLinear)(expand(weight, dtype), bias)

    def pack_head(self, weight: torch.Tensor) -> Head:
        """Returns a head that computes all logits."""
        return PlainHead(self.pack_linear(weight), self.likeliest)

    def low_rank(self, x: torch.Tensor, token_adapters: torch.Tensor, stack: LowRankStack) -> torch.Tensor:
        """Returns [token, part sizes]."""
        return low_rank(x, token_adapters, stack)

    def build_decoder(self, parts: DecoderParts) -> Decoder:
        """Returns layers that run operator by operator."""
        return ComposedDecoder(parts, self)

    def likeliest(self, logits: torch.Tensor) -> LikeliestTokens:
        """Returns the likeliest tokens and their logits."""
        peaks, token_ids = logits.max(dim=-1)
        return LikeliestTokens(token_ids=token_ids, logits=peaks.to(torch.float32))

    def keep_allowed(self, logits: torch.Tensor, rows: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """Returns [mask] the largest logit that is left."""
        return reference_sampling.keep_allowed(logits, rows, allowed)

    def sample(
        self,
        logits: torch.Tensor,
        *,
        temperature: torch.Tensor,
        top_k: torch.Tensor,
        top_p: torch.Tensor,
        seeds: torch.Tensor,
        positions: torch.Tensor,
    ) -> torch.Tensor:
        """Returns [row] int64."""
        return reference_sampling.sample(
            logits, temperature=temperature, top_k=top_k, top_p=top_p, seeds=seeds, positions=positions
        )

    def logprobs(self, logits: torch.Tensor, token_ids: torch.Tensor, top_count: int) -> TokenLogprobs:
        """Returns the log-probabilities of `token_ids` and of the likeliest tokens."""
        return reference_sampling.logprobs(logits, token_ids, top_count)

    def _rounded(self, weight: torch.Tensor) -> torch.Tensor:
        if self._weight_format is not WeightFormat.INT8:
            return weight
        return dequantize(quantize(weight), weight.dtype)


def _rotate(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Takes and returns [token, head, head_dim]; the factors are [token, 1, rotary_dim / 2]."""
    half = cosines.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines, rest), dim=-1)
