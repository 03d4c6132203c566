"""The operators that a model is made of, and the choice of a version for a device."""

from collections.abc import Callable
from typing import Protocol

import torch

from headrace.kernels.attention_batch import AttentionBatch
from headrace.kernels.build import BuildFailed, default_cache_folder
from headrace.kernels.cpu import load_cpu_kernels
from headrace.kernels.decoder import Decoder, DecoderParts
from headrace.kernels.gpu.loader import is_triton_installed, load_triton_kernels
from headrace.kernels.head import Head
from headrace.kernels.likeliest_tokens import LikeliestTokens
from headrace.kernels.linear import PackedLinear
from headrace.kernels.low_rank import LowRankStack
from headrace.kernels.quantization import BlockWeight, WeightFormat
from headrace.kernels.reference import ReferenceKernels
from headrace.kernels.token_logprobs import TokenLogprobs

VERSIONS = ("cpu", "reference", "triton")
"""Names that `select` takes, besides `auto`."""


class KernelsUnavailable(ValueError):
    """No version of the operators has this name, or it does not run on the device."""


class Kernels(Protocol):
    """One version of every operator.

    The tokens of all rows of a step lie in one flat batch without padding,
    [token, ...], row after row. Floating-point tensors of a call are of one
    dtype unless said otherwise; sums run in float32 or wider. A row's result
    does not depend on what the other rows hold. Nothing here is thread-safe.

    The KV cache of a layer is a pair of tensors [block, kv_head, block_size,
    head_dim]. A slot is a token's place in it: `block_id * block_size + offset`.
    NOTE: heads come before tokens so that what one head reads of one block,
    [block_size, head_dim], is one run of memory: a thread takes a (row, head)
    and streams. The other order writes a token in one piece, but that is one
    write against context-length reads. Kernels that want tokens first get
    `cache.transpose(1, 2)` without a copy.
    """

    @property
    def name(self) -> str:
        """Such as `reference`."""
        ...

    @property
    def is_bfloat16_fast(self) -> bool:
        """Whether products of bfloat16 take less time than those of float32."""
        ...

    def thread_ids(self) -> tuple[int, ...]:
        """Returns the system's ids of the threads on which operators run for the calling one, itself first.

        Empty where that cannot be told, as on a device that is no processor.
        """
        ...

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Returns `x / sqrt(mean(x**2) + epsilon) * weight`.

        Args:
            x: [token, hidden].
            weight: [hidden].
            epsilon: Added to the mean square.

        Returns:
            [token, hidden], a new tensor.
        """
        ...

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds a block's output to the residual stream and normalises the sum.

        Args:
            x: [token, hidden]; may be overwritten.
            residual: [token, hidden]; may be overwritten.
            weight: [hidden].
            epsilon: Added to the mean square.

        Returns:
            The normalised sum and the sum, both [token, hidden]. Either may
            share memory with an argument, so use the results alone.
        """
        ...

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Returns `silu(gate) * up`.

        Args:
            gate_up: [token, 2 * inner], the gate in the first half.

        Returns:
            [token, inner], a new tensor.
        """
        ...

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
        """Rotates queries and keys by their positions and writes keys and values to the cache.

        The rotation pairs element i with element i + rotary_dim / 2; elements
        from `rotary_dim` on stay as they are.

        Args:
            query: [token, head, head_dim]. Here and in the next two tokens may be strided, heads are not.
            key: [token, kv_head, head_dim].
            value: [token, kv_head, head_dim].
            positions: [token] int64.
            cos_sin: [position, rotary_dim] float32: cosines, then sines, rotary_dim / 2 of each.
            key_cache: [block, kv_head, block_size, head_dim]; written.
            value_cache: [block, kv_head, block_size, head_dim]; written.
            slot_ids: [token] int64, all different.

        Returns:
            The rotated query, [token, head, head_dim], contiguous.
        """
        ...

    def prepare_attention(
        self, block_tables: torch.Tensor, query_starts: torch.Tensor, context_lengths: torch.Tensor, *, block_size: int
    ) -> AttentionBatch:
        """Works out once per step what the attention of every layer shares.

        The tensors are the fields of AttentionBatch. Every row brings at least
        one token, and every entry of a block table up to the row's context is a block.
        """
        ...

    def paged_attention(
        self,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        batch: AttentionBatch,
        *,
        scale: float,
    ) -> torch.Tensor:
        """Returns causal attention over each row's blocks; the tokens of the step are in them already.

        Query head h reads key-value head `h // (head / kv_head)`. What a block
        holds past a row's context has no effect, not even a NaN.

        Args:
            query: [token, head, head_dim], contiguous.
            key_cache: [block, kv_head, block_size, head_dim].
            value_cache: [block, kv_head, block_size, head_dim].
            batch: What this version's `prepare_attention` returned for the step.
            scale: Factor of the scores before the softmax, positive.

        Returns:
            [token, head, head_dim], contiguous.

        Raises:
            ValueError: the scale is not positive and finite.
        """
        ...

    def pack_linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedLinear:
        """Returns the layer in the form that runs fastest here.

        Args:
            weight: [out_feature, in_feature]; may be kept, or copied into another form.
            bias: [out_feature].
        """
        ...

    def pack_gated_linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedLinear:
        """Returns the first layer of a gated MLP: [token, inner], `silu(gate) * up`.

        Args:
            weight: [2 * inner, in_feature], the gate's rows in the first half; may be kept, or copied.
            bias: [2 * inner].
        """
        ...

    def pack_blocks(
        self, weight: BlockWeight, bias: torch.Tensor | None = None, *, dtype: torch.dtype, is_gated: bool = False
    ) -> PackedLinear:
        """Returns what `pack_linear`, or `pack_gated_linear`, would return for the expanded weight, to the last bit.

        Args:
            weight: [out_feature, in_feature]; may stay in its blocks.
            bias: [out_feature].
            dtype: Of the weight once it is expanded, which is that of the input.
            is_gated: Whether the first half of the rows are gates.
        """
        ...

    def pack_head(self, weight: torch.Tensor) -> Head:
        """Returns the projection to the vocabulary in the form that runs fastest here.

        Args:
            weight: [vocabulary, hidden]; may be kept, or copied into other forms.
        """
        ...

    def low_rank(self, x: torch.Tensor, token_adapters: torch.Tensor, stack: LowRankStack) -> torch.Tensor:
        """Returns what adapters add to the outputs of a linear layer.

        Args:
            x: [token, in_feature], the layer's input; rows may be strided.
            token_adapters: [token] int64, the token's adapter among those of the stack; -1 for none.
            stack: The adapters.

        Returns:
            [token, sum of the parts' sizes] float32, zero for tokens without an adapter.
        """
        ...

    def build_decoder(self, parts: DecoderParts) -> Decoder:
        """Returns the layers in the form that runs fastest here, over weights that this version has packed."""
        ...

    def likeliest(self, logits: torch.Tensor) -> LikeliestTokens:
        """Returns the likeliest token of each row, which `sample` draws at temperature 0, and its logit.

        Args:
            logits: [row, vocabulary], float32 or narrower.
        """
        ...

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
        """Draws one token per row: temperature, then top-k, then top-p over what top-k kept.

        Temperature 0 takes the likeliest token. Among equal logits the lowest
        id counts as the likelier everywhere. Every version draws alike: the
        uniform number of `philox.uniform(seed, position)`, times the kept mass,
        is looked up in the cumulated probabilities in order of token ids.

        Args:
            logits: [row, vocabulary], float32 or narrower; -inf excludes a token. At least
                one logit per row is finite and none is NaN.
            temperature: [row] float32, >= 0.
            top_k: [row] int64; 0 keeps all.
            top_p: [row] float32, in (0, 1].
            seeds: [row] int64, the bits of the unsigned seed.
            positions: [row] int64, >= 0, of the drawn token in its sequence; or with `philox.SECOND_NUMBER` in it.

        Returns:
            [row] int64.
        """
        ...

    def keep_allowed(self, logits: torch.Tensor, rows: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """Takes the tokens that a mask does not allow out of the draw: their logits become -inf, in place.

        Args:
            logits: [row, vocabulary], contiguous, float32 or narrower, none NaN; written.
            rows: [mask] int64, all different: the row of each mask. Rows without one stay as they are.
            allowed: [mask, word] int32: a bit for each token id, the lowest first, set where the
                token is allowed. What is past the vocabulary does not count.

        Returns:
            [mask] float32: the largest logit that is left; -inf if none is.
        """
        ...

    def logprobs(self, logits: torch.Tensor, token_ids: torch.Tensor, top_count: int) -> TokenLogprobs:
        """Returns the log-probabilities of given tokens and of the likeliest ones.

        Args:
            logits: [row, vocabulary], float32 or narrower.
            token_ids: [row] int64.
            top_count: How many of the likeliest; in [0, vocabulary].
        """
        ...


def select(
    device: torch.device,
    preference: str = "auto",
    *,
    weight_format: WeightFormat = WeightFormat.PLAIN,
    progress: Callable[[str], None] = lambda _: None,
) -> Kernels:
    """Returns a version of the operators for a device.

    The first call on a machine may compile for some seconds.

    Args:
        device: Where the tensors are.
        preference: A name of VERSIONS; `auto` is the fastest that is known to run there.
        weight_format: How linear layers keep their weights.
        progress: Told before work that takes seconds, and why `auto` is not the fastest there is.

    Raises:
        KernelsUnavailable: there is no such version for the device.
    """
    if preference not in ("auto", *VERSIONS):
        raise KernelsUnavailable(f"no kernels {preference!r}; choose one of: auto, {', '.join(VERSIONS)}")
    if preference == ReferenceKernels.name or (preference == "auto" and device.type != "cpu"):
        return ReferenceKernels(weight_format)
    if preference == "triton":
        if weight_format is WeightFormat.INT8:
            raise KernelsUnavailable(f"the triton kernels keep no weights as {weight_format}")
        return _select_triton(device)
    if device.type != "cpu":
        raise KernelsUnavailable(f"the cpu kernels do not run on {device.type}")
    try:
        return load_cpu_kernels(default_cache_folder(), progress, weight_format=weight_format)
    except BuildFailed as error:
        if preference != "auto":
            raise KernelsUnavailable(f"the cpu kernels cannot be built: {error}") from error
        progress(f"running on the slow reference operators: {error}")
        return ReferenceKernels(weight_format)


def _select_triton(device: torch.device) -> Kernels:
    # NOTE: only by name. They have not run on a GPU yet, so `auto` stays with the reference there.
    if device.type != "cuda":
        raise KernelsUnavailable(f"the triton kernels run on cuda devices, not on {device.type}")
    if not is_triton_installed():
        raise KernelsUnavailable("the triton kernels need the package triton, which is not installed")
    return load_triton_kernels()
