"""Operators that take each token by itself: norms, gating, and rotation into the KV cache.

Each reads what it needs once and writes once, since memory is all that limits
them: the addition is part of the norm, and the rotation part of the write.
Where the reference rounds to the tensors' dtype midway, so do these.
"""

# ruff: noqa: PLR0917 - Triton's functions take pointers and strides by position

import torch
import triton
import triton.language as tl

from headrace.kernels.gpu.jit import jit, launch, next_power_of_two, rows_of

_GATE_TILE = 1024
"""Elements that one program gates."""


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Takes and returns [token, hidden]; the weight is [hidden]."""
    normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch_norm(x, x, weight, epsilon, total=None, normed=normed)
    return normed


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the normalised sum and the sum, both [token, hidden] and new."""
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    normed = torch.empty_like(total)
    _launch_norm(x, residual, weight, epsilon, total=total, normed=normed)
    return normed, total


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Takes [token, 2 * inner], returns [token, inner]."""
    gate_up = rows_of(gate_up)
    token_count, inner = gate_up.shape[0], gate_up.shape[1] // 2
    gated = torch.empty((token_count, inner), dtype=gate_up.dtype, device=gate_up.device)
    size = min(_GATE_TILE, next_power_of_two(inner))
    grid = (token_count, triton.cdiv(inner, size))
    launch(_silu_mul, grid, gate_up, gated, gate_up.stride(0), inner, size=size)
    return gated


def rotary_and_write_kv(
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
    """Returns the rotated query, [token, head, head_dim]; writes [block, kv_head, block_size, head_dim]."""
    token_count, head_count, head_dim = query.shape
    kv_head_count, rotary_dim = key.shape[1], cos_sin.shape[1]
    rotated = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    arguments = (query, key, value, rotated, positions, cos_sin, key_cache, value_cache, slot_ids)
    strides = (query.stride(0), key.stride(0), value.stride(0), cos_sin.stride(0))
    launch(
        _rotate_and_write,
        (token_count, head_count + kv_head_count),
        *arguments,
        *strides,
        *key_cache.stride()[:3],
        *value_cache.stride()[:3],
        head_count=head_count,
        head_dim=head_dim,
        half=rotary_dim // 2,
        block_size=key_cache.shape[2],
        half_size=next_power_of_two(rotary_dim // 2),
        size=next_power_of_two(head_dim),
        num_warps=1,
    )
    return rotated


def _launch_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    epsilon: float,
    *,
    total: torch.Tensor | None,
    normed: torch.Tensor,
) -> None:
    """Fills `normed` with the norm of `x`, or, with a `total` to fill, with that of the sum."""
    x, residual = rows_of(x), rows_of(residual)
    token_count, width = x.shape
    size = next_power_of_two(width)
    # One warp for each 512 elements: 16 per thread stay in registers.
    warp_count = min(max(size // 512, 1), 16)
    targets = (normed if total is None else total, normed)
    numbers = (x.stride(0), residual.stride(0), width, epsilon)
    constants = {"adds": total is not None, "size": size, "num_warps": warp_count}
    launch(_norm_row, (token_count,), x, residual, weight.contiguous(), *targets, *numbers, **constants)


@jit
def _norm_row(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    total: tl.tensor,
    normed: tl.tensor,
    x_stride: tl.tensor,
    residual_stride: tl.tensor,
    width: tl.tensor,
    epsilon: tl.tensor,
    adds: tl.constexpr,
    size: tl.constexpr,
) -> None:
    """Norms one token; `total` is written only if it `adds`."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, size)
    is_inside = columns < width
    values = tl.load(x + row * x_stride + columns, mask=is_inside, other=0.0).to(tl.float32)
    if adds:
        values += tl.load(residual + row * residual_stride + columns, mask=is_inside, other=0.0).to(tl.float32)
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + row * width + columns, rounded, mask=is_inside)
        values = rounded.to(tl.float32)
    factor = tl.rsqrt(tl.sum(values * values, axis=0) / width + epsilon)
    scaled = (values * factor).to(normed.dtype.element_ty).to(tl.float32)
    weights = tl.load(weight + columns, mask=is_inside, other=0.0).to(tl.float32)
    tl.store(normed + row * width + columns, (scaled * weights).to(normed.dtype.element_ty), mask=is_inside)


@jit
def _silu_mul(
    gate_up: tl.tensor, gated: tl.tensor, row_stride: tl.tensor, inner: tl.tensor, size: tl.constexpr
) -> None:
    """Gates one run of one token's elements."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * size + tl.arange(0, size)
    is_inside = columns < inner
    begin = gate_up + row * row_stride
    gates = tl.load(begin + columns, mask=is_inside, other=0.0).to(tl.float32)
    up = tl.load(begin + inner + columns, mask=is_inside, other=0.0).to(tl.float32)
    opened = (gates / (1.0 + tl.exp(-gates))).to(gated.dtype.element_ty).to(tl.float32)
    tl.store(gated + row * inner + columns, (opened * up).to(gated.dtype.element_ty), mask=is_inside)


@jit
def _rotate_head(
    source: tl.tensor,
    target: tl.tensor,
    cos_sin: tl.tensor,
    head_dim: tl.constexpr,
    half: tl.constexpr,
    half_size: tl.constexpr,
    size: tl.constexpr,
) -> None:
    """Rotates one head of one token; all pointers are to first elements."""
    pairs = tl.arange(0, half_size)
    is_pair = pairs < half
    cosines = tl.load(cos_sin + pairs, mask=is_pair, other=0.0)
    sines = tl.load(cos_sin + half + pairs, mask=is_pair, other=0.0)
    first = tl.load(source + pairs, mask=is_pair, other=0.0).to(tl.float32)
    second = tl.load(source + half + pairs, mask=is_pair, other=0.0).to(tl.float32)
    dtype = target.dtype.element_ty
    tl.store(target + pairs, (first * cosines - second * sines).to(dtype), mask=is_pair)
    tl.store(target + half + pairs, (second * cosines + first * sines).to(dtype), mask=is_pair)
    if 2 * half < head_dim:
        columns = tl.arange(0, size)
        is_rest = (columns >= 2 * half) & (columns < head_dim)
        tl.store(target + columns, tl.load(source + columns, mask=is_rest, other=0.0), mask=is_rest)


@jit
def _rotate_and_write(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    rotated: tl.tensor,
    positions: tl.tensor,
    cos_sin: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    slot_ids: tl.tensor,
    query_stride: tl.tensor,
    key_stride: tl.tensor,
    value_stride: tl.tensor,
    cos_sin_stride: tl.tensor,
    key_block_stride: tl.tensor,
    key_head_stride: tl.tensor,
    key_slot_stride: tl.tensor,
    value_block_stride: tl.tensor,
    value_head_stride: tl.tensor,
    value_slot_stride: tl.tensor,
    head_count: tl.constexpr,
    head_dim: tl.constexpr,
    half: tl.constexpr,
    block_size: tl.constexpr,
    half_size: tl.constexpr,
    size: tl.constexpr,
) -> None:
    """Rotates a query head of a token, or, after the last of those, writes a key-value head."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    factors = cos_sin + tl.load(positions + token) * cos_sin_stride
    if head < head_count:
        source = query + token * query_stride + head * head_dim
        target = rotated + (token * head_count + head) * head_dim
        _rotate_head(source, target, factors, head_dim, half, half_size, size)
    else:
        kv_head = head - head_count
        slot = tl.load(slot_ids + token)
        block, offset = slot // block_size, slot % block_size
        source = key + token * key_stride + kv_head * head_dim
        target = key_cache + block * key_block_stride + kv_head * key_head_stride + offset * key_slot_stride
        _rotate_head(source, target, factors, head_dim, half, half_size, size)
        columns = tl.arange(0, size)
        is_inside = columns < head_dim
        copied = tl.load(value + token * value_stride + kv_head * head_dim + columns, mask=is_inside, other=0.0)
        target = value_cache + block * value_block_stride + kv_head * value_head_stride + offset * value_slot_stride
        tl.store(target + columns, copied, mask=is_inside)
