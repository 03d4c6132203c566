"""Linear layers over 8-bit weights: the rounding, and the arithmetic on what it leaves."""

import pytest
import torch

from headrace.kernels.build import default_cache_folder
from headrace.kernels.cpu import CpuKernels, load_cpu_kernels
from headrace.kernels.instruction_sets import PORTABLE, InstructionSet, supported
from headrace.kernels.quantization import WeightFormat, dequantize, quantize
from headrace.kernels.reference import ReferenceKernels

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="module", params=["best", "portable"])
def instruction_set(request: pytest.FixtureRequest) -> InstructionSet:
    return PORTABLE if request.param == "portable" else supported(torch.cpu.get_capabilities())[0]


@pytest.fixture(scope="module")
def int8_kernels(instruction_set: InstructionSet) -> CpuKernels:
    return load_cpu_kernels(
        default_cache_folder(), print, weight_format=WeightFormat.INT8, candidates=(instruction_set,)
    )


@pytest.fixture(scope="module")
def splits_inputs(instruction_set: InstructionSet) -> bool:
    """Whether an element of bfloat16 becomes two numbers of eight bits."""
    return instruction_set.uses_tiles


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
    int8_kernels: CpuKernels,
    *,
    splits_inputs: bool,
    token_count: int,
    in_count: int,
    out_count: int,
    has_bias: bool,
    dtype: torch.dtype,
) -> None:
    weight, x = randn(out_count, in_count, dtype=dtype), randn(token_count, in_count, dtype=dtype, seed=1)
    bias = randn(out_count, dtype=dtype, seed=2) if has_bias else None
    values, scales = quantize(weight)
    exact = (x.double() @ values.double().T) * scales.double() + (0 if bias is None else bias.double())
    magnitude = (x.double().abs() @ values.double().abs().T) * scales.double() + exact.abs()
    rounding = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-23
    actual = int8_kernels.pack_linear(weight, bias)(x).double()
    tolerance = (in_count + 3) * 2.0**-24 * magnitude + rounding * exact.abs()
    if splits_inputs:
        tolerance += lost(x, values, scales)
    assert ((actual - exact).abs() <= tolerance).all()


def lost(x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """What may be lost at most where an element of the input becomes two numbers of eight bits."""
    if x.dtype != torch.bfloat16:
        return torch.zeros(())
    step = x.double().abs().amax(dim=1, keepdim=True) / (127 * 254)
    return 0.501 * step * values.double().abs().sum(dim=1) * scales.double()


@pytest.mark.parametrize("outlier", [1.0, 100.0, 3000.0])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("width", [32, 63, 64, 65, 576])
def test_a_few_large_elements_leave_the_others_their_weight(
    int8_kernels: CpuKernels, *, splits_inputs: bool, width: int, scale: float, outlier: float
) -> None:
    weight, x = randn(70, width, dtype=torch.bfloat16), randn(20, width, dtype=torch.bfloat16, seed=1)
    x[:, ::37] *= outlier
    x *= scale
    values, scales = quantize(weight)
    exact = (x.double() @ values.double().T) * scales.double()
    magnitude = (x.double().abs() @ values.double().abs().T) * scales.double()
    actual = int8_kernels.pack_linear(weight)(x).double()
    tolerance = (width + 3) * 2.0**-24 * magnitude + 2.0**-8 * exact.abs()
    if splits_inputs:
        tolerance += lost(x, values, scales)
    assert ((actual - exact).abs() <= tolerance).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_zeros_gives_zeros(int8_kernels: CpuKernels, dtype: torch.dtype) -> None:
    layer = int8_kernels.pack_linear(randn(40, 64, dtype=dtype))
    assert layer(torch.zeros(3, 64, dtype=dtype)).eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_shows_in_its_row_alone(int8_kernels: CpuKernels, dtype: torch.dtype, broken: float) -> None:
    layer, x = int8_kernels.pack_linear(randn(40, 96, dtype=dtype)), randn(35, 96, dtype=dtype, seed=1)
    expected = layer(x)
    x[7, 50] = broken
    actual = layer(x)
    assert not actual[7].isfinite().any()
    assert torch.equal(actual[:7], expected[:7])
    assert torch.equal(actual[8:], expected[8:])


def test_any_number_of_rows_gives_what_one_gives(int8_kernels: CpuKernels) -> None:
    layer, x = int8_kernels.pack_gated_linear(randn(96, 130, dtype=torch.bfloat16)), randn(70, 130, seed=1).bfloat16()
    single = torch.cat([layer(row) for row in x.split(1)])
    for count in range(1, 71):
        assert torch.equal(layer(x[:count]), single[:count])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gated_layer(int8_kernels: CpuKernels, *, splits_inputs: bool, dtype: torch.dtype) -> None:
    weight, x = randn(2 * 40, 96, dtype=dtype) / 10, randn(35, 96, dtype=dtype, seed=1)
    values, scales = quantize(weight)
    gate, up = ((x.double() @ values.double().T) * scales.double()).chunk(2, dim=1)
    exact = gate * torch.sigmoid(gate) * up
    actual = int8_kernels.pack_gated_linear(weight)(x).double()
    is_narrow = dtype == torch.bfloat16
    atol, rtol = 3e-4 if is_narrow and splits_inputs else 1e-5, 2.0**-7 if is_narrow else 1e-5
    torch.testing.assert_close(actual, exact, atol=atol, rtol=rtol)


def test_a_row_does_not_depend_on_the_others(int8_kernels: CpuKernels) -> None:
    layer, x = int8_kernels.pack_linear(randn(96, 200, dtype=torch.bfloat16)), randn(150, 200, dtype=torch.bfloat16)
    together = layer(x)
    for count in (1, 16, 17, 33, 149):
        assert torch.equal(layer(x[150 - count :]), together[150 - count :])


def test_the_reference_rounds_alike(int8_kernels: CpuKernels) -> None:
    weight, x = randn(64, 96), randn(5, 96, seed=1)
    expected = ReferenceKernels(WeightFormat.INT8).pack_linear(weight)(x)
    torch.testing.assert_close(int8_kernels.pack_linear(weight)(x), expected, atol=1e-4, rtol=1e-4)
