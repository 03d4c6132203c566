"""The projection of hidden states to the vocabulary."""

from collections.abc import Callable
from typing import Protocol

import torch

from headrace.kernels.likeliest_tokens import LikeliestTokens
from headrace.kernels.linear import PackedLinear


class Head(Protocol):
    """A linear layer whose outputs are logits."""

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the logits.

        Args:
            hidden: [row, hidden], of the weight's dtype; rows may be strided.

        Returns:
            [row, vocabulary], contiguous, of the same dtype.
        """
        ...

    def likeliest(self, hidden: torch.Tensor) -> LikeliestTokens:
        """Returns what `Kernels.likeliest` returns for the logits, which need not be computed for that."""
        ...


class PlainHead:
    """A head that computes all logits."""

    def __init__(self, linear: PackedLinear, likeliest: Callable[[torch.Tensor], LikeliestTokens]) -> None:
        self._linear = linear
        self._likeliest = likeliest

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns [row, vocabulary]."""
        return self._linear(hidden)

    def likeliest(self, hidden: torch.Tensor) -> LikeliestTokens:
        """Returns the likeliest tokens."""
        return self._likeliest(self._linear(hidden))
