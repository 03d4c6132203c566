"""Weights that stay in the blocks of their file: to the last bit the weights that the blocks stand for."""

import pytest
import torch
from block_weights import make_blocks

from headrace.kernels.cpu import CpuKernels
from headrace.kernels.quantization import BlockWeight, expand, stack
from headrace.kernels.reference import ReferenceKernels

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(1, 32, 32), (3, 64, 31), (40, 576, 66), (700, 1536, 96)]
"""Tokens, inputs and outputs."""


def randn(*size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(7)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_minima", [False, True])
@pytest.mark.parametrize(("token_count", "in_count", "out_count"), SHAPES)
def test_a_layer_is_that_of_the_expanded_weight(
    cpu_kernels: CpuKernels, *, token_count: int, in_count: int, out_count: int, has_minima: bool, dtype: torch.dtype
) -> None:
    weight, x = make_blocks(out_count, in_count, has_minima=has_minima), randn(token_count, in_count, dtype=dtype)
    bias = randn(out_count, dtype=dtype)
    assert torch.equal(
        cpu_kernels.pack_blocks(weight, bias, dtype=dtype)(x), cpu_kernels.pack_linear(expand(weight, dtype), bias)(x)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_minima", [False, True])
def test_a_gated_layer_is_that_of_the_expanded_weight(
    cpu_kernels: CpuKernels, *, has_minima: bool, dtype: torch.dtype
) -> None:
    weight, x = make_blocks(2 * 40, 96, has_minima=has_minima), randn(35, 96, dtype=dtype)
    blocks = cpu_kernels.pack_blocks(weight, dtype=dtype, is_gated=True)
    assert blocks.out_feature_count == 40
    assert torch.equal(blocks(x), cpu_kernels.pack_gated_linear(expand(weight, dtype))(x))


@pytest.mark.parametrize("is_gated", [False, True])
def test_the_reference_expands_them(*, is_gated: bool) -> None:
    kernels, weight, x = ReferenceKernels(), make_blocks(64, 32, has_minima=True), randn(3, 32, dtype=torch.float32)
    pack = kernels.pack_gated_linear if is_gated else kernels.pack_linear
    blocks = kernels.pack_blocks(weight, dtype=torch.float32, is_gated=is_gated)
    assert torch.equal(blocks(x), pack(expand(weight, torch.float32))(x))


def test_weights_of_one_kind_are_stacked() -> None:
    first, second = (make_blocks(32, 64, has_minima=True, seed=seed) for seed in range(2))
    whole = stack([first, second])
    assert whole is not None
    parts = [expand(first, torch.float32), expand(second, torch.float32)]
    assert torch.equal(expand(whole, torch.float32), torch.cat(parts))
    assert stack([first, make_blocks(32, 64, has_minima=False)]) is None


def test_what_is_no_weight_in_blocks_is_refused(cpu_kernels: CpuKernels) -> None:
    weight = make_blocks(32, 64, has_minima=False)
    for wrong, message in (
        (BlockWeight(values=weight.values, scales=weight.scales[:, :1]), "scales"),
        (BlockWeight(values=weight.values, scales=weight.scales.float()), "scales"),
        (BlockWeight(values=weight.values.int(), scales=weight.scales), "values"),
        (BlockWeight(values=weight.values[:, :40].contiguous(), scales=weight.scales), "multiple of 32"),
        (BlockWeight(values=weight.values, scales=weight.scales, minima=weight.scales), "values"),
    ):
        with pytest.raises(RuntimeError, match=message):
            cpu_kernels.pack_blocks(wrong, dtype=torch.float32)
