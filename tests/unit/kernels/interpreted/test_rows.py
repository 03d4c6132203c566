"""Norms, gating and rotation in Triton equal the reference."""

import pytest
import torch

from headrace.kernels.gpu.triton_kernels import TritonKernels
from headrace.kernels.reference import ReferenceKernels

KERNELS = TritonKernels(is_interpreted=True)
REFERENCE = ReferenceKernels()
# The interpreter cuts where a GPU rounds to bfloat16, so one unit in the last place per rounding is expected.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 3e-2}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCES[expected.dtype]
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def randn(*size: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


@DTYPES
@pytest.mark.parametrize(("token_count", "width"), [(1, 1), (3, 33), (4, 576), (2, 1024)])
def test_norms(dtype: torch.dtype, token_count: int, width: int) -> None:
    x, residual = randn(token_count, width, dtype=dtype), randn(token_count, width, dtype=dtype, seed=1) * 3
    weight = randn(width, dtype=dtype, seed=2)
    assert_close(KERNELS.rms_norm(x, weight, 1e-5), REFERENCE.rms_norm(x, weight, 1e-5))
    found, total = KERNELS.add_rms_norm(x.clone(), residual.clone(), weight, 1e-5)
    expected, expected_total = REFERENCE.add_rms_norm(x, residual, weight, 1e-5)
    assert_close(found, expected)
    assert_close(total, expected_total)


def test_a_norm_of_zeros_is_zero() -> None:
    assert KERNELS.rms_norm(torch.zeros(2, 8), torch.ones(8), 1e-6).tolist() == [[0.0] * 8] * 2


def test_norms_of_strided_tokens() -> None:
    wide = randn(5, 80, dtype=torch.float32)
    weight = torch.ones(24)
    for x in (wide[:, 8:32], wide[::2, :24], wide[:, :72:3], wide[:1, :24].expand(4, -1)):
        assert_close(KERNELS.rms_norm(x, weight, 1e-5), REFERENCE.rms_norm(x, weight, 1e-5))
        found = KERNELS.add_rms_norm(x, x.flip(1), weight, 1e-5)
        for one, other in zip(found, REFERENCE.add_rms_norm(x, x.flip(1), weight, 1e-5), strict=True):
            assert_close(one, other)


@DTYPES
@pytest.mark.parametrize("inner", [1, 40, 1536])
def test_silu_mul(dtype: torch.dtype, inner: int) -> None:
    gate_up = randn(3, 2 * inner, dtype=dtype) * 4
    assert_close(KERNELS.silu_mul(gate_up), REFERENCE.silu_mul(gate_up))
    wide = randn(3, 2 * inner + 5, dtype=dtype)[:, 5:]
    assert_close(KERNELS.silu_mul(wide), REFERENCE.silu_mul(wide))


def test_a_gated_layer() -> None:
    x, weight, bias = (randn(*size, dtype=torch.float32) for size in ((4, 6), (14, 6), (14,)))
    layer = KERNELS.pack_gated_linear(weight, bias)
    assert (layer.in_feature_count, layer.out_feature_count) == (6, 7)
    assert_close(layer(x), REFERENCE.pack_gated_linear(weight, bias)(x))


@DTYPES
@pytest.mark.parametrize(
    "shape",
    [(3, 1, 16, 16, 4), (4, 2, 10, 10, 3), (2, 2, 12, 6, 1), (9, 3, 64, 64, 16)],
)
def test_rotation_and_cache(dtype: torch.dtype, shape: tuple[int, int, int, int, int]) -> None:
    head_count, kv_head_count, head_dim, rotary_dim, block_size = shape
    token_count = 5
    fused = randn(token_count, (head_count + 2 * kv_head_count) * head_dim, dtype=dtype)
    sizes = [head_count * head_dim, kv_head_count * head_dim, kv_head_count * head_dim]
    # Views of one fused product: tokens are strided, heads are not.
    query, key, value = (part.view(token_count, -1, head_dim) for part in fused.split(sizes, dim=1))
    angles = torch.rand(40, rotary_dim // 2, generator=torch.Generator().manual_seed(3)) * 6
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
    slot_ids = torch.randperm(7 * block_size, generator=torch.Generator().manual_seed(4))[:token_count]
    positions = torch.tensor([0, 39, 7, 7, 20])
    results = []
    for version in (KERNELS, REFERENCE):
        # Parts of larger tensors, and not of like ones: no stride of one does for the other.
        key_whole = torch.full((7, 2, kv_head_count, block_size, head_dim), 7.0, dtype=dtype)
        value_whole = torch.full((7, kv_head_count + 1, block_size + 2, head_dim + 3), 7.0, dtype=dtype)
        rotated = version.rotary_and_write_kv(
            query,
            key,
            value,
            positions=positions,
            cos_sin=cos_sin,
            key_cache=key_whole[:, 1],
            value_cache=value_whole[:, 1:, 1:-1, 2:-1],
            slot_ids=slot_ids,
        )
        results.append((rotated, key_whole, value_whole))
    found, expected = results
    assert found[0].is_contiguous()
    assert_close(found[0], expected[0])
    assert_close(found[1], expected[1])
    assert torch.equal(found[2], expected[2])
