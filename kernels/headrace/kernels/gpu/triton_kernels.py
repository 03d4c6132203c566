"""The Triton version of every operator, for CUDA and ROCm devices."""

from typing import ClassVar

import torch

from headrace.kernels.attention_batch import AttentionBatch, check_scale
from headrace.kernels.decoder import ComposedDecoder, Decoder, DecoderParts
from headrace.kernels.gpu import attention, rows, sampling
from headrace.kernels.head import Head, PlainHead
from headrace.kernels.likeliest_tokens import LikeliestTokens
from headrace.kernels.linear import PackedLinear, PlainLinear
from headrace.kernels.low_rank import LowRankStack, low_rank
from headrace.kernels.quantization import BlockWeight, expand
from headrace.kernels.token_logprobs import TokenLogprobs


class TritonKernels:
    """Operators in Triton; headrace.kernels.dispatch.Kernels says what each does.

    Caches must have head_dim side by side; nothing else is asked of strides
    beyond what the protocol says. Nothing waits for the device but `sample`,
    which has to learn whether a row filters, and `logprobs`.
    """

    name: ClassVar[str] = "triton"

    def __init__(self, *, is_interpreted: bool = False) -> None:
        """Takes whether Triton's interpreter runs the kernels, on tensors on the CPU."""
        self._is_interpreted = is_interpreted

    @property
    def is_bfloat16_fast(self) -> bool:
        """As on every GPU with tensor cores for it; the interpreter is slow at everything."""
        return not self._is_interpreted

    def thread_ids(self) -> tuple[int, ...]:
        """Returns none: nothing runs on the processor."""
        return ()

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Returns [token, hidden]."""
        return rows.rms_norm(x, weight, epsilon)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the normalised sum and the sum, both [token, hidden]."""
        return rows.add_rms_norm(x, residual, weight, epsilon)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Returns [token, inner]."""
        return rows.silu_mul(gate_up)

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
        return rows.rotary_and_write_kv(
            query,
            key,
            value,
            positions=positions,
            cos_sin=cos_sin,
            key_cache=key_cache,
            value_cache=value_cache,
            slot_ids=slot_ids,
        )

    def prepare_attention(
        self, block_tables: torch.Tensor, query_starts: torch.Tensor, context_lengths: torch.Tensor, *, block_size: int
    ) -> AttentionBatch:
        """Returns the rows as they are: every program works out its own part."""
        del block_size
        return AttentionBatch(block_tables=block_tables, query_starts=query_starts, context_lengths=context_lengths)

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
        check_scale(scale)
        return attention.paged_attention(
            query, key_cache, value_cache, batch, scale=scale, is_interpreted=self._is_interpreted
        )

    def pack_linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedLinear:
        """Returns the layer over the weight as it is, which the vendor's library multiplies."""
        return PlainLinear(weight, bias)

    def pack_gated_linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedLinear:
        """Returns the vendor's product followed by `silu_mul`."""
        return _GatedLinear(weight, bias)

    def pack_blocks(
        self, weight: BlockWeight, bias: torch.Tensor | None = None, *, dtype: torch.dtype, is_gated: bool = False
    ) -> PackedLinear:
        """Returns the layer over the expanded weight."""
        return (self.pack_gated_linear if is_gated else self.pack_linear)(expand(weight, dtype), bias)

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
        return sampling.likeliest(logits)

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
        return sampling.sample(
            logits, temperature=temperature, top_k=top_k, top_p=top_p, seeds=seeds, positions=positions
        )

    def keep_allowed(self, logits: torch.Tensor, rows: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """Returns [mask] the largest logit that is left."""
        return sampling.keep_allowed(logits, rows, allowed)

    def logprobs(self, logits: torch.Tensor, token_ids: torch.Tensor, top_count: int) -> TokenLogprobs:
        """Returns the log-probabilities of `token_ids` and of the likeliest tokens."""
        return sampling.logprobs(logits, token_ids, top_count)


class _GatedLinear:
    """The first layer of a gated MLP: one product for both halves, then the gating."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._linear = PlainLinear(weight, bias)

    @property
    def in_feature_count(self) -> int:
        """Width of the input."""
        return self._linear.in_feature_count

    @property
    def out_feature_count(self) -> int:
        """Width of the output."""
        return self._linear.out_feature_count // 2

    def __call__(self, x: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
        """Returns [token, inner]."""
        return rows.silu_mul(self._linear(x, added))
