"""The CPU operators that take each token for itself, against their definitions in float64."""

import pytest
import torch

from headrace.kernels.cpu import CpuKernels
from headrace.kernels.reference import ReferenceKernels

DTYPES = [torch.float32, torch.bfloat16]
# Half the distance of neighbouring numbers, relative: what one rounding may cost; then some for the arithmetic.
ROUNDING = {torch.float32: 2.0**-21, torch.bfloat16: 2.0**-8}


def randn(*size: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_rounded(actual: torch.Tensor, exact: torch.Tensor, magnitude: torch.Tensor | None = None) -> None:
    """Asserts that `actual` is `exact`, up to a rounding of it or of the magnitudes that it is the sum of."""
    bound = ROUNDING[actual.dtype] * (exact.abs() if magnitude is None else magnitude) + 1e-30
    excess = (actual.double() - exact).abs() - bound
    assert excess.max() <= 0, f"off by {excess.max()} more than {bound.flatten()[excess.argmax()]}"


def exact_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("token_count", "hidden"), [(1, 1), (2, 15), (3, 16), (1, 17), (5, 576), (70, 1000)])
def test_rms_norm(cpu_kernels: CpuKernels, token_count: int, hidden: int, dtype: torch.dtype) -> None:
    x, weight = randn(token_count, hidden, dtype=dtype), randn(hidden, dtype=dtype, seed=1)
    assert_rounded(cpu_kernels.rms_norm(x, weight, 1e-5), exact_norm(x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("token_count", "hidden"), [(1, 8), (4, 33), (40, 576)])
def test_add_rms_norm_adds_and_norms_the_rounded_sum(
    cpu_kernels: CpuKernels, token_count: int, hidden: int, dtype: torch.dtype
) -> None:
    x, residual = randn(token_count, hidden, dtype=dtype), randn(token_count, hidden, dtype=dtype, seed=1)
    weight, total = randn(hidden, dtype=dtype, seed=2), x + residual
    normed, summed = cpu_kernels.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(summed, total)
    assert_rounded(normed, exact_norm(total, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("token_count", "inner"), [(1, 1), (3, 7), (9, 1536), (1, 40)])
def test_silu_mul(cpu_kernels: CpuKernels, token_count: int, inner: int, dtype: torch.dtype) -> None:
    gate_up = randn(token_count, 2 * inner, dtype=dtype) * 8
    gate, up = gate_up.double().chunk(2, dim=-1)
    assert_rounded(cpu_kernels.silu_mul(gate_up), gate * torch.sigmoid(gate) * up)


def test_silu_mul_at_the_ends_of_the_range(cpu_kernels: CpuKernels) -> None:
    gates = torch.tensor([[-1e30, -200.0, -90.0, 0.0, 90.0, 1e30, torch.nan, -torch.inf]])
    gated = cpu_kernels.silu_mul(torch.cat((gates, torch.ones_like(gates)), dim=1))[0]
    assert gated[[0, 1, 3]].eq(0).all()
    assert gated[2].abs() < 1e-30
    assert gated[[4, 5]].equal(gates[0, [4, 5]])
    assert gated[[6, 7]].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("token_count", "heads", "kv_heads", "head_dim", "rotary_dim", "block_size"),
    [(1, 4, 1, 64, 64, 16), (7, 3, 3, 8, 6, 1), (40, 9, 3, 64, 64, 5), (3, 2, 1, 80, 32, 64)],
)
def test_rotary_turns_pairs_and_writes_the_slots_alone(
    cpu_kernels: CpuKernels,
    *,
    token_count: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    rotary_dim: int,
    block_size: int,
    dtype: torch.dtype,
) -> None:
    merged = randn(token_count, heads + 2 * kv_heads, head_dim, dtype=dtype)
    query, key, value = merged.split([heads, kv_heads, kv_heads], dim=1)
    positions = torch.randint(0, 50, (token_count,), generator=torch.Generator().manual_seed(3))
    angles = torch.outer(torch.arange(50.0), 0.5 ** torch.arange(rotary_dim // 2))
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
    block_count = token_count // block_size + 2
    slot_ids = torch.randperm(block_count * block_size, generator=torch.Generator().manual_seed(4))[:token_count]
    caches = [torch.full((block_count, kv_heads, block_size, head_dim), 7.0, dtype=dtype) for _ in range(4)]
    where = {"positions": positions, "cos_sin": cos_sin, "slot_ids": slot_ids}
    rotated = cpu_kernels.rotary_and_write_kv(query, key, value, key_cache=caches[0], value_cache=caches[1], **where)
    wide = [tensor.double() for tensor in (query, key, value, caches[2], caches[3])]
    exact = ReferenceKernels().rotary_and_write_kv(*wide[:3], key_cache=wide[3], value_cache=wide[4], **where)
    assert torch.equal(caches[1], wide[4].to(dtype))
    # Each number is the sum of two products, none of them larger than the head's largest number.
    for actual, expected in ((rotated, exact), (caches[0], wide[3])):
        assert_rounded(actual, expected, torch.full_like(expected, 2 * float(merged.abs().max())))


def test_another_type_is_refused(cpu_kernels: CpuKernels) -> None:
    with pytest.raises(RuntimeError, match="float32 and bfloat16"):
        cpu_kernels.rms_norm(torch.ones(1, 8, dtype=torch.float64), torch.ones(8, dtype=torch.float64), 1e-5)


def test_a_slot_outside_of_the_cache_is_refused(cpu_kernels: CpuKernels) -> None:
    heads, cache = torch.ones(1, 1, 8), torch.zeros(2, 1, 4, 8)
    with pytest.raises(RuntimeError, match="slot_ids has 8"):
        cpu_kernels.rotary_and_write_kv(
            heads,
            heads,
            heads,
            positions=torch.tensor([0]),
            cos_sin=torch.ones(4, 8),
            key_cache=cache,
            value_cache=cache.clone(),
            slot_ids=torch.tensor([8]),
        )
