"""A head that finds the likeliest tokens through its weight in eight bits, see cpu/screened_head.h."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from headrace.kernels.head import Head
from headrace.kernels.likeliest_tokens import LikeliestTokens
from headrace.kernels.quantization import quantize

SCREENED_ROW_LIMIT = 32
"""As many as the operator takes."""

_DEPTH = 32
"""What the width of the hidden states has to be a multiple of."""

_LARGEST_NORM = 1e15
"""Of a row of the weight: below it no sum can overflow."""

_LOST_SQUARE = 2.0**-63
"""The square of what is smaller may be lost in float32."""

_SLICE = 4096
"""Rows of the weight that are looked at in one go: all of them in float32 may not fit into memory."""


class Screen(NamedTuple):
    """A weight in eight bits, and how far that may lead astray."""

    values: torch.Tensor
    """[out_feature, in_feature] int8."""
    scales: torch.Tensor
    """[out_feature] float32."""
    errors: torch.Tensor
    """[out_feature] float32: how far an output may be from the whole weight's, before it is stored, for an input of
    norm 1: the norm of what was rounded away, and what sums in float32 round."""
    norm: float
    """The largest of a row."""


def make_screen(weight: torch.Tensor) -> Screen | None:
    """Returns the screen of a weight; None where there can be none.

    Args:
        weight: [out_feature, in_feature].
    """
    width = weight.shape[1]
    if width % _DEPTH:
        return None
    values, scales, errors, largest = [], [], [], 0.0
    for part in torch.split(weight, _SLICE):
        wide = part.to(torch.float32)
        norms = torch.linalg.vector_norm(wide, dim=1)
        if not bool((norms < _LARGEST_NORM).all()):
            return None
        rounded = quantize(wide)
        rest = torch.linalg.vector_norm(wide - rounded.values * rounded.scales[:, None], dim=1)
        # A sum of n products in float32 is off by n roundings of 2**-24 of the magnitudes' sum, which is at most the
        # product of the norms. There are less than two such sums; and the norms here are such sums themselves.
        unit = (width + 16) * 2.0**-23
        values.append(rounded.values)
        scales.append(rounded.scales)
        errors.append((rest + norms * unit) * (1.0 + unit) + width**0.5 * _LOST_SQUARE)
        largest = max(largest, float((norms + rest).max()) * (1.0 + unit))
    return Screen(torch.cat(values), torch.cat(scales), torch.cat(errors), largest)


class ScreenedHead:
    """Computes all logits where they are wanted, and otherwise those that may be the largest."""

    def __init__(
        self,
        head: Head,
        panels: torch.Tensor,
        screen: Screen,
        screen_panels: torch.Tensor,
        find: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        """Takes what it computes with.

        Args:
            head: Computes all logits.
            panels: The head's weight.
            screen: What is known of that weight's screen.
            screen_panels: The screen's values.
            find: The operator `likeliest_of_head`.
        """
        self._head = head
        self._find = find
        self._weight = (panels, screen_panels, screen.scales, screen.errors, screen.norm)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns [row, vocabulary]."""
        return self._head(hidden)

    def likeliest(self, hidden: torch.Tensor) -> LikeliestTokens:
        """Returns the likeliest tokens."""
        if not 1 <= hidden.shape[0] <= SCREENED_ROW_LIMIT:
            return self._head.likeliest(hidden)
        return LikeliestTokens(*self._find(hidden, *self._weight))
