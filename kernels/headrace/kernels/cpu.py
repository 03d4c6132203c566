"""The CPU version of every operator: C++, built on first use for what the processor can do."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch

from headrace.kernels.attention_batch import AttentionBatch, check_scale
from headrace.kernels.build import BuildFailed, build, namespace_of
from headrace.kernels.cpu_decoder import CpuDecoder, panels_of, with_panels
from headrace.kernels.cpu_fakes import register_fakes
from headrace.kernels.decoder import ComposedDecoder, Decoder, DecoderParts
from headrace.kernels.head import Head, PlainHead
from headrace.kernels.instruction_sets import InstructionSet, supported
from headrace.kernels.likeliest_tokens import LikeliestTokens
from headrace.kernels.linear import PackedLinear
from headrace.kernels.low_rank import LowRankStack
from headrace.kernels.panel_linear import PanelLinear
from headrace.kernels.quantization import BlockWeight, WeightFormat, quantize
from headrace.kernels.screened_head import ScreenedHead, make_screen
from headrace.kernels.token_logprobs import TokenLogprobs

_TWELVE_BITS = "bfloat16 in twelve bits"
"""How PanelLinear.packing names it."""


def load_cpu_kernels(
    cache_folder: Path,
    progress: Callable[[str], None],
    *,
    weight_format: WeightFormat = WeightFormat.PLAIN,
    candidates: Sequence[InstructionSet] | None = None,
) -> "CpuKernels":
    """Returns the operators for the best instructions that this processor has and this compiler knows.

    Args:
        cache_folder: Where builds are kept.
        progress: Told before work that takes seconds.
        weight_format: How linear layers keep their weights.
        candidates: What to try, the best first; None tries all that the processor has.

    Raises:
        BuildFailed: they cannot be built here.
    """
    failure = BuildFailed("there is nothing to build")
    for instruction_set in supported(torch.cpu.get_capabilities()) if candidates is None else candidates:
        try:
            library = build(instruction_set, cache_folder, progress)
            return CpuKernels(
                _load(library, instruction_set),
                weight_format,
                is_bfloat16_fast=instruction_set.multiplies_bfloat16,
                has_tiles=instruction_set.uses_tiles,
            )
        except BuildFailed as error:
            failure = error
            progress(f"no {instruction_set.name} operators: {error}")
    raise failure


@cache
def _load(library: Path, instruction_set: InstructionSet) -> Any:  # noqa: ANN401 - torch.ops has no types
    torch.ops.load_library(library)  # type: ignore[no-untyped-call] # torch has no annotation here
    operators = getattr(torch.ops, namespace_of(instruction_set))
    if instruction_set.uses_tiles and not operators.request_tiles():
        raise BuildFailed("the system does not grant the tile registers of AMX")
    register_fakes(namespace_of(instruction_set), has_tiles=instruction_set.uses_tiles)
    return operators


class CpuKernels:
    """Operators in C++, for float32 and bfloat16; headrace.kernels.dispatch.Kernels says what each does.

    A row's result is the same to the last bit whatever other rows there are,
    and a token's the same whatever chunk it is computed in.
    """

    name: ClassVar[str] = "cpu"

    def __init__(
        self,
        operators: Any,  # noqa: ANN401 - torch.ops has no types
        weight_format: WeightFormat,
        *,
        is_bfloat16_fast: bool,
        has_tiles: bool,
    ) -> None:
        self._is_bfloat16_fast = is_bfloat16_fast
        self._weight_format = weight_format
        # Overloads are looked up once: a step calls hundreds of operators.
        self._thread_ids = operators.thread_ids.default
        self._rms_norm = operators.rms_norm.default
        self._add_rms_norm = operators.add_rms_norm.default
        self._silu_mul = operators.silu_mul.default
        self._rotary_and_write_kv = operators.rotary_and_write_kv.default
        self._paged_attention = operators.paged_attention.default
        self._pack_weight = operators.pack_weight.default
        self._pack_integers = operators.pack_integers.default
        self._pack_twelve_bits = operators.pack_twelve_bits.default
        self._expand_twelve_bits = operators.expand_twelve_bits.default
        self._pack_blocks = operators.pack_blocks.default
        self._linear = operators.linear.default
        self._low_rank = operators.low_rank.default
        self._decoder = operators.decoder.default
        self._sample = operators.sample.default
        self._likeliest = operators.likeliest.default
        self._likeliest_of_head = operators.likeliest_of_head.default if has_tiles else None
        self._keep_allowed = operators.keep_allowed.default
        self._logprobs = operators.logprobs.default

    @property
    def is_bfloat16_fast(self) -> bool:
        """Whether the processor has instructions for it."""
        return self._is_bfloat16_fast

    def thread_ids(self) -> tuple[int, ...]:
        """Returns the ids of OpenMP's threads for the calling thread."""
        return tuple(self._thread_ids())

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Returns [token, hidden]."""
        normed: torch.Tensor = self._rms_norm(x, weight, epsilon)
        return normed

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the normalised sum and the sum, in the memory of the arguments."""
        self._add_rms_norm(x, residual, weight, epsilon)
        return x, residual

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Returns [token, inner]."""
        product: torch.Tensor = self._silu_mul(gate_up)
        return product

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
        rotated: torch.Tensor = self._rotary_and_write_kv(
            query, key, value, positions, cos_sin, key_cache, value_cache, slot_ids
        )
        return rotated

    def prepare_attention(
        self, block_tables: torch.Tensor, query_starts: torch.Tensor, context_lengths: torch.Tensor, *, block_size: int
    ) -> AttentionBatch:
        """Returns the rows as they are."""
        del block_size  # The cache knows it.
        return AttentionBatch(
            block_tables=block_tables,
            query_starts=query_starts.contiguous(),
            context_lengths=context_lengths.contiguous(),
        )

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
        attended: torch.Tensor = self._paged_attention(
            query, key_cache, value_cache, batch.block_tables, batch.query_starts, batch.context_lengths, scale
        )
        return attended

    def pack_linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedLinear:
        """Returns the layer over a copy of the weight in panels."""
        return self._pack(weight, bias, is_gated=False)

    def pack_gated_linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedLinear:
        """Returns the layer over a copy of the weight in panels that hold gates beside what they gate."""
        return self._pack(weight, bias, is_gated=True)

    def pack_blocks(
        self, weight: BlockWeight, bias: torch.Tensor | None = None, *, dtype: torch.dtype, is_gated: bool = False
    ) -> PackedLinear:
        """Returns the layer over panels of blocks, which each thread expands just before it multiplies by them."""
        del dtype  # The input has it.
        panels = self._pack_blocks(weight.values, weight.scales, weight.minima, is_gated)
        return PanelLinear(
            self._linear,
            panels=panels,
            scales=None,
            bias=bias,
            weight_shape=weight.shape,
            is_gated=is_gated,
            packing="eight-bit blocks" if weight.minima is None else "four-bit blocks",
        )

    def pack_head(self, weight: torch.Tensor) -> Head:
        """Returns a head that looks at its weight in eight bits first, where that is faster."""
        linear = self._pack(weight, None, is_gated=False)
        head = PlainHead(linear, self.likeliest)
        find = self._likeliest_of_head
        if find is None or self._weight_format is not WeightFormat.AUTO or weight.dtype != torch.bfloat16:
            return head
        screen = make_screen(weight)
        if screen is None:
            return head
        is_gated = False
        screen_panels = self._pack_integers(screen.values, is_gated, weight.dtype)
        return ScreenedHead(head, linear.panels, screen, screen_panels, find)

    def _pack(self, weight: torch.Tensor, bias: torch.Tensor | None, *, is_gated: bool) -> PanelLinear:
        scales = None
        packing = _TWELVE_BITS
        panels = self._pack_compact(weight, is_gated=is_gated)
        if panels is None and self._weight_format is WeightFormat.INT8:
            values, scales = quantize(weight)
            panels = self._pack_integers(values, is_gated, weight.dtype)
        elif panels is None:
            panels = self._pack_weight(weight, is_gated)
        if panels.dtype != torch.uint8:
            packing = str(panels.dtype)
        return PanelLinear(
            self._linear,
            panels=panels,
            scales=scales,
            bias=bias,
            weight_shape=weight.shape,
            is_gated=is_gated,
            packing=packing,
        )

    def _pack_compact(self, weight: torch.Tensor, *, is_gated: bool) -> torch.Tensor | None:
        # NOTE: without instructions for bfloat16 a product takes so long that memory is no limit.
        is_faster = self._weight_format is WeightFormat.AUTO and self._is_bfloat16_fast
        if weight.dtype != torch.bfloat16 or not (is_faster or self._weight_format is WeightFormat.COMPACT):
            return None
        panels: torch.Tensor | None = self._pack_twelve_bits(weight, is_gated)
        return panels

    def expand(self, linear: PanelLinear) -> PanelLinear:
        """Returns the same layer with its weight plain, if it lies in twelve bits."""
        if linear.packing != _TWELVE_BITS:
            return linear
        return linear.repacked(self._expand_twelve_bits(linear.panels), str(torch.bfloat16))

    def low_rank(self, x: torch.Tensor, token_adapters: torch.Tensor, stack: LowRankStack) -> torch.Tensor:
        """Returns [token, part sizes]."""
        added: torch.Tensor = self._low_rank(
            x, token_adapters, stack.downs, stack.ups, stack.part_ranks, stack.part_sizes
        )
        return added

    def build_decoder(self, parts: DecoderParts) -> Decoder:
        """Returns layers that run as one operator, where their widths allow it."""
        packings = {linear.packing for linear in panels_of(parts)}
        if packings == {_TWELVE_BITS, str(torch.bfloat16)}:
            # Some weights did not fit into twelve bits, and the operator takes one kind alone.
            parts = with_panels(parts, self.expand)
        return CpuDecoder(self._decoder, parts) if CpuDecoder.fits(parts) else ComposedDecoder(parts, self)

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
        token_ids: torch.Tensor = self._sample(logits, temperature, top_k, top_p, seeds, positions)
        return token_ids

    def likeliest(self, logits: torch.Tensor) -> LikeliestTokens:
        """Returns the likeliest tokens and their logits."""
        return LikeliestTokens(*self._likeliest(logits))

    def keep_allowed(self, logits: torch.Tensor, rows: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """Returns [mask] the largest logit that is left."""
        peaks: torch.Tensor = self._keep_allowed(logits, rows, allowed)
        return peaks

    def logprobs(self, logits: torch.Tensor, token_ids: torch.Tensor, top_count: int) -> TokenLogprobs:
        """Returns the log-probabilities of `token_ids` and of the likeliest tokens."""
        return TokenLogprobs(*self._logprobs(logits, token_ids, top_count))
