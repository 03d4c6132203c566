"""A decoder's layers in one C++ operator: all threads go through them together, without Python in between."""

from collections.abc import Callable
from dataclasses import replace

import torch

from headrace.kernels.decoder import DecoderParts, DecoderStep
from headrace.kernels.linear import PackedLinear
from headrace.kernels.panel_linear import PanelLinear

_WIDTH_MULTIPLE = 32


class CpuDecoder:
    """Runs layers whose weights lie in panels. Gives the same, to the last bit, as the operators one by one."""

    def __init__(self, operator: Callable[..., torch.Tensor], parts: DecoderParts) -> None:
        layers = parts.layers
        panels = panels_of(parts)
        norms = [norm for layer in layers for norm in (layer.input_norm, layer.mlp_norm)]
        no_bias = parts.final_norm.new_empty(0)
        has_bias = any(linear.bias is not None for linear in panels)
        self.operator = operator
        self._weights = (
            [*norms, parts.final_norm],
            [linear.panels for linear in panels],
            [linear.scales for linear in panels if linear.scales is not None],
            [no_bias if linear.bias is None else linear.bias for linear in panels] if has_bias else [],
            [cache for pair in zip(parts.key_caches, parts.value_caches, strict=True) for cache in pair],
            parts.cos_sin,
        )
        self._sizes = (parts.head_count, layers[0].gated.out_feature_count, parts.norm_epsilon, parts.scale)

    @staticmethod
    def fits(parts: DecoderParts) -> bool:
        """Whether the operator takes these layers.

        All that a product reads must be whole panels deep, and all weights packed alike.
        """
        if len({linear.packing for linear in panels_of(parts)}) > 1:
            return False
        first = parts.layers[0]
        widths = (linear.in_feature_count for linear in (first.query_key_value, first.attention_output, first.down))
        return all(width % _WIDTH_MULTIPLE == 0 for width in widths)

    def __call__(self, residual: torch.Tensor, step: DecoderStep) -> torch.Tensor:
        """Returns [output, hidden]."""
        return self.operator(*self.arguments(residual, step))

    def arguments(self, residual: torch.Tensor, step: DecoderStep) -> tuple[object, ...]:
        """Returns what the operator takes for a step."""
        adapters = step.adapters
        added: tuple[object, ...] = (None, [], [], [])
        if adapters is not None:
            added = (adapters.indices, adapters.stacks.downs, adapters.stacks.ups, adapters.stacks.part_ranks)
        return (
            residual,
            *self._weights,
            step.positions,
            step.slot_ids,
            step.attention.block_tables,
            step.attention.query_starts,
            step.attention.context_lengths,
            step.output_indices,
            *self._sizes,
            *added,
        )


def with_panels(parts: DecoderParts, change: Callable[[PanelLinear], PanelLinear]) -> DecoderParts:
    """Returns the same decoder with other linear layers; all of them have panels."""

    def changed(linear: PackedLinear) -> PanelLinear:
        assert isinstance(linear, PanelLinear)
        return change(linear)

    layers = tuple(
        replace(
            layer,
            query_key_value=changed(layer.query_key_value),
            attention_output=changed(layer.attention_output),
            gated=changed(layer.gated),
            down=changed(layer.down),
        )
        for layer in parts.layers
    )
    return replace(parts, layers=layers)


def panels_of(parts: DecoderParts) -> list[PanelLinear]:
    """Returns the linear layers in the order in which the operator takes their weights."""
    linears = [
        linear
        for layer in parts.layers
        for linear in (layer.query_key_value, layer.attention_output, layer.gated, layer.down)
    ]
    panels = [linear for linear in linears if isinstance(linear, PanelLinear)]
    assert len(panels) == len(linears)
    return panels
