"""What LoRA adapters add to the linear layers of a decoder, and which token gets which."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

RANK_MULTIPLE = 16
"""Ranks are filled up with zeros to whole vectors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRankPart:
    """The product beside one part of a layer's outputs: `x @ down.T @ up.T`."""

    down: torch.Tensor
    """[rank, in_feature]"""
    up: torch.Tensor
    """[size of part, rank], the adapter's scale included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRankLayer:
    """What one adapter adds to one linear layer, whose outputs are parts, such as queries, keys and values."""

    down: torch.Tensor
    """[in_feature, rank], the parts' columns one after another, filled up with zeros to a multiple of 16."""
    up: torch.Tensor
    """One part's [rank of part, size of part] after another, flat."""
    part_ranks: tuple[int, ...]
    """0 for a part without a product."""

    @classmethod
    def of(
        cls, parts: Sequence[LowRankPart | None], *, in_feature_count: int, dtype: torch.dtype, device: torch.device
    ) -> "LowRankLayer":
        """Merges the products of a layer's parts, None where there is none."""
        present = [part for part in parts if part is not None]
        ranks = [part.down.shape[0] for part in present]
        down = torch.zeros(in_feature_count, -(-sum(ranks) // RANK_MULTIPLE) * RANK_MULTIPLE, dtype=dtype)
        if present:
            down[:, : sum(ranks)] = torch.cat([part.down for part in present]).T.to(dtype)
        flat = [part.up.T.to(dtype).reshape(-1) for part in present]
        return cls(
            down=down.to(device),
            up=torch.cat(flat).to(device) if flat else torch.empty(0, dtype=dtype, device=device),
            part_ranks=tuple(0 if part is None else part.down.shape[0] for part in parts),
        )

    @property
    def size_bytes(self) -> int:
        """Memory of the weights."""
        return self.down.nbytes + self.up.nbytes

    def ups(self, part_sizes: Sequence[int]) -> Iterator[torch.Tensor]:
        """Yields [rank of part, size of part] for each part, those without a product included."""
        start = 0
        for rank, size in zip(self.part_ranks, part_sizes, strict=True):
            yield self.up[start : start + rank * size].view(rank, size)
            start += rank * size


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerAdapter:
    """What one adapter adds to the linear layers of one layer of a decoder."""

    query_key_value: LowRankLayer
    attention_output: LowRankLayer
    gated: LowRankLayer
    """Before the gating; its parts are the gates and what they gate."""
    down: LowRankLayer

    @property
    def size_bytes(self) -> int:
        """Memory of the weights."""
        return sum(linear.size_bytes for linear in (self.query_key_value, self.attention_output, self.gated, self.down))


class LowRankStack:
    """What several adapters add to the same linear layer."""

    __slots__ = ("downs", "is_empty", "layers", "part_ranks", "part_sizes", "ups")

    def __init__(self, layers: Sequence[LowRankLayer], part_sizes: Sequence[int]) -> None:
        self.layers = tuple(layers)
        self.part_sizes = list(part_sizes)
        """Outputs of each part."""
        self.downs = [layer.down for layer in layers]
        self.ups = [layer.up for layer in layers]
        self.part_ranks = [rank for layer in layers for rank in layer.part_ranks]
        """[adapter, part], flat."""
        self.is_empty = not any(self.part_ranks)
        """Whether no adapter adds anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStacks:
    """What the adapters of a step add to one layer of a decoder."""

    query_key_value: LowRankStack
    attention_output: LowRankStack
    gated: LowRankStack
    down: LowRankStack

    @property
    def linears(self) -> tuple[LowRankStack, LowRankStack, LowRankStack, LowRankStack]:
        """One for each linear layer, in the order in which the layer runs them."""
        return (self.query_key_value, self.attention_output, self.gated, self.down)


class DecoderStacks:
    """What the adapters of a step add to a decoder."""

    __slots__ = ("downs", "layers", "part_ranks", "ups")

    def __init__(self, layers: Sequence[LayerStacks]) -> None:
        stacks = [stack for layer in layers for stack in layer.linears]
        self.layers = tuple(layers)
        self.downs = [down for stack in stacks for down in stack.downs]
        """[layer, linear, adapter], flat."""
        self.ups = [up for stack in stacks for up in stack.ups]
        """As `downs`."""
        self.part_ranks = [rank for stack in stacks for rank in stack.part_ranks]
        """[layer, linear, adapter, part], flat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSizes:
    """Outputs of the parts of each linear layer of a decoder."""

    query_key_value: tuple[int, int, int]
    attention_output: tuple[int]
    gated: tuple[int, int]
    down: tuple[int]


def stack_adapters(adapters: Sequence[Sequence[LayerAdapter]], sizes: PartSizes) -> DecoderStacks:
    """Returns what adapters, each a list by layer of the decoder, add to it."""
    return DecoderStacks(
        [
            LayerStacks(
                query_key_value=LowRankStack([layer.query_key_value for layer in layers], sizes.query_key_value),
                attention_output=LowRankStack([layer.attention_output for layer in layers], sizes.attention_output),
                gated=LowRankStack([layer.gated for layer in layers], sizes.gated),
                down=LowRankStack([layer.down for layer in layers], sizes.down),
            )
            for layers in zip(*adapters, strict=True)
        ]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAdapters:
    """The adapters of a step's tokens, of which at least one has one."""

    indices: torch.Tensor
    """[token] int64, the token's adapter among those that were stacked; -1 for none."""
    stacks: DecoderStacks
    """What they add."""


def low_rank(x: torch.Tensor, token_adapters: torch.Tensor, stack: LowRankStack) -> torch.Tensor:
    """Returns what `Kernels.low_rank` says, in plain torch."""
    total = x.new_zeros(x.shape[0], sum(stack.part_sizes), dtype=torch.float32)
    for index, layer in enumerate(stack.layers):
        tokens = (token_adapters == index).nonzero()[:, 0]
        if len(tokens) == 0:
            continue
        narrow = x[tokens].to(torch.float32) @ layer.down.to(torch.float32)
        pieces = []
        start = 0
        for up in layer.ups(stack.part_sizes):
            rank = up.shape[0]
            pieces.append(narrow[:, start : start + rank] @ up.to(torch.float32))
            start += rank
        total[tokens] = torch.cat(pieces, dim=1)
    return total
