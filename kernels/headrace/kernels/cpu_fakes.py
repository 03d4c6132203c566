"""Shapes of what the C++ operators return, so that torch can trace them without running them."""

from collections.abc import Callable

import torch

_DECODER_OUTPUT_TOKENS = 11
"""Place of that argument of `decoder` after the first."""


def register_fakes(namespace: str, *, has_tiles: bool) -> None:
    """Registers the shapes of every operator of a namespace; a second time is an error."""
    fakes = _FAKES | _TILE_FAKES if has_tiles else _FAKES
    for name, fake in fakes.items():
        torch.library.register_fake(f"{namespace}::{name}", fake)


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    del weight, epsilon
    return torch.empty_like(x)


def _add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float) -> None:
    del x, residual, weight, epsilon


def _silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


def _rotary_and_write_kv(query: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return query.new_empty(query.shape)


def _paged_attention(query: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(query)


def _linear(x: torch.Tensor, panels: torch.Tensor, *layer: object) -> torch.Tensor:
    del panels
    _, _, out_count, is_gated = layer[:4]
    assert isinstance(out_count, int)
    return x.new_empty(x.shape[0], out_count // 2 if is_gated else out_count)


def _low_rank(x: torch.Tensor, token_adapters: torch.Tensor, *stack: object) -> torch.Tensor:
    del token_adapters
    part_sizes = stack[-1]
    assert isinstance(part_sizes, list)
    return x.new_empty(x.shape[0], sum(part_sizes), dtype=torch.float32)


def _decoder(residual: torch.Tensor, *arguments: object) -> torch.Tensor:
    output_tokens = arguments[_DECODER_OUTPUT_TOKENS]
    assert isinstance(output_tokens, torch.Tensor)
    return residual.new_empty(output_tokens.shape[0], residual.shape[1])


def _likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    row_count = logits.shape[0]
    return logits.new_empty(row_count, dtype=torch.int64), logits.new_empty(row_count, dtype=torch.float32)


def _likeliest_of_head(x: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
    return _likeliest(x)


def _keep_allowed(logits: torch.Tensor, rows: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    del allowed
    return logits.new_empty(rows.shape[0], dtype=torch.float32)


def _sample(logits: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.int64)


def _logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, top_count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    row_count = token_ids.shape[0]
    return (
        logits.new_empty(row_count, dtype=torch.float32),
        logits.new_empty(row_count, dtype=torch.int64),
        logits.new_empty(row_count, top_count, dtype=torch.int64),
        logits.new_empty(row_count, top_count, dtype=torch.float32),
    )


_FAKES: dict[str, Callable[..., object]] = {
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "silu_mul": _silu_mul,
    "rotary_and_write_kv": _rotary_and_write_kv,
    "paged_attention": _paged_attention,
    "linear": _linear,
    "low_rank": _low_rank,
    "decoder": _decoder,
    "likeliest": _likeliest,
    "keep_allowed": _keep_allowed,
    "sample": _sample,
    "logprobs": _logprobs,
}
_TILE_FAKES: dict[str, Callable[..., object]] = {"likeliest_of_head": _likeliest_of_head}
"""Of operators that are there only with the tile registers of AMX."""
