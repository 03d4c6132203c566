"""A linear layer whose weight may lie in memory as its device likes it best."""

from typing import Protocol

import torch
from torch.nn import functional


class PackedLinear(Protocol):
    """A linear layer, ready to run."""

    @property
    def in_feature_count(self) -> int:
        """Width of the input."""
        ...

    @property
    def out_feature_count(self) -> int:
        """Width of the output."""
        ...

    def __call__(self, x: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
        """Returns `x @ weight.T + bias + added`, gated where the layer is.

        Args:
            x: [token, in_feature], of the weight's dtype; rows may be strided.
            added: [token, rows of the weight] float32, contiguous; None adds nothing.

        Returns:
            [token, out_feature], contiguous, of the same dtype.
        """
        ...


class PlainLinear:
    """A linear layer over the weight as it is."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._weight = weight
        self._bias = bias

    @property
    def in_feature_count(self) -> int:
        """Width of the input."""
        return self._weight.shape[1]

    @property
    def out_feature_count(self) -> int:
        """Width of the output."""
        return self._weight.shape[0]

    def __call__(self, x: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
        """Returns [token, out_feature]."""
        product = functional.linear(x, self._weight, self._bias)
        return product if added is None else (product + added).to(x.dtype)


class PlainGatedLinear:
    """The first layer of a gated MLP over the weight as it is."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
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
        """Returns [token, out_feature]."""
        return gate(self._linear(x, added))


def gate(gate_up: torch.Tensor) -> torch.Tensor:
    """Returns silu of the first half of each row, times the second."""
    gates, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gates) * up
