"""A linear layer over a weight that lies in panels, as the C++ operators read it."""

from collections.abc import Callable

import torch


class PanelLinear:
    """A linear layer, gated or not, over panels."""

    def __init__(
        self,
        operator: Callable[..., torch.Tensor],
        *,
        panels: torch.Tensor,
        scales: torch.Tensor | None,
        bias: torch.Tensor | None,
        weight_shape: torch.Size,
        is_gated: bool,
        packing: str,
    ) -> None:
        self._operator = operator
        self.panels = panels
        """The packed weight."""
        self.scales = scales
        """[row of the weight] float32, or None."""
        self.bias = bias
        """[row of the weight], or None."""
        self.packing = packing
        """The same for weights that are packed alike."""
        self._weight_shape = weight_shape
        self._row_count, self._in_feature_count = weight_shape
        self._is_gated = is_gated

    def repacked(self, panels: torch.Tensor, packing: str) -> "PanelLinear":
        """Returns the same layer over the same weight in other panels."""
        return PanelLinear(
            self._operator,
            panels=panels,
            scales=self.scales,
            bias=self.bias,
            weight_shape=self._weight_shape,
            is_gated=self._is_gated,
            packing=packing,
        )

    @property
    def in_feature_count(self) -> int:
        """Width of the input."""
        return self._in_feature_count

    @property
    def out_feature_count(self) -> int:
        """Width of the output."""
        return self._row_count // 2 if self._is_gated else self._row_count

    def __call__(self, x: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
        """Returns [token, out_feature]."""
        return self._operator(x, self.panels, self.scales, self.bias, self._row_count, self._is_gated, added)
