"""Linear layers over 8-bit weights: the rounding, and the arithmetic on what it leaves."""

import pytest
import torch

from headrace.kernels.build import default_cache_folder
from headrace.kernels.cpu import CpuKernels, load_cpu_kernels
from headrace.kernels.instruction_sets import PORTABLE, supported
from headrace.kernels.quantization import WeightFormat, dequantize, quantize
from headrace.kernels.reference import ReferenceKernels

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="module", params=["best", "portable"])
def int8_kernels(request: pytest.FixtureRequest) -> CpuKernels:
    candidates = (PORTABLE,) if request.param == "portable" else supported(torch.cpu.get_capabilities())[:1]
    return load_cpu_kernels(default_cache_folder(), print, weight_format=WeightFormat.INT8, candidates=candidates)


def randn(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_each_row_is_rounded_to_a_127th_of_its_largest() -> None:
    weight = randn(20, 300) * torch.logspace(-20, 20, 20)[:, None]
    quantized = quantize(weight)
    assert quantized.values.abs().amax(dim=1).eq(127).all()
    half_step = weight.abs().amax(dim=1, keepdim=True) / 254
    assert ((dequantize(quantized, torch.float32) - weight).abs() <= half_step * 1.0001).all()


def test_a_row_of_zeros_stays_zero() -> None:
    quantized = quantize(torch.zeros(2, 8))
    assert dequantize(quantized, torch.float32).eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("token_count", "in_count", "out_count"), [(1, 32, 32), (3, 33, 31), (40, 576, 65)])
def test_a_linear_layer(
    int8_kernels: CpuKernels, *, token_count: int, in_count: int, out_count: int, has_bias: bool, dtype: torch.dtype
) -> None:
    weight, x = randn(out_count, in_count, dtype=dtype), randn(token_count, in_count, dtype=dtype, seed=1)
    bias = randn(out_count, dtype=dtype, seed=2) if has_bias else None
    values, scales = quantize(weight)
    exact = (x.double() @ values.double().T) * scales.double() + (0 if bias is None else bias.double())
    magnitude = (x.double().abs() @ values.double().abs().T) * scales.double() + exact.abs()
    rounding = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-23
    actual = int8_kernels.pack_linear(weight, bias)(x).double()
    assert ((actual - exact).abs() <= (in_count + 3) * 2.0**-24 * magnitude + rounding * exact.abs()).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gated_layer(int8_kernels: CpuKernels, dtype: torch.dtype) -> None:
    weight, x = randn(2 * 40, 96, dtype=dtype) / 10, randn(35, 96, dtype=dtype, seed=1)
    values, scales = quantize(weight)
    gate, up = ((x.double() @ values.double().T) * scales.double()).chunk(2, dim=1)
    exact = gate * torch.sigmoid(gate) * up
    actual = int8_kernels.pack_gated_linear(weight)(x).double()
    tolerance = 2.0**-7 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(actual, exact, atol=1e-5, rtol=tolerance)


def test_a_row_does_not_depend_on_the_others(int8_kernels: CpuKernels) -> None:
    layer, x = int8_kernels.pack_linear(randn(96, 200, dtype=torch.bfloat16)), randn(150, 200, dtype=torch.bfloat16)
    together = layer(x)
    for count in (1, 16, 17, 33, 149):
        assert torch.equal(layer(x[150 - count :]), together[150 - count :])


def test_the_reference_rounds_alike(int8_kernels: CpuKernels) -> None:
    weight, x = randn(64, 96), randn(5, 96, seed=1)
    expected = ReferenceKernels(WeightFormat.INT8).pack_linear(weight)(x)
    torch.testing.assert_close(int8_kernels.pack_linear(weight)(x), expected, atol=1e-4, rtol=1e-4)
