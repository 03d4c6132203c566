"""The CPU linear layers: right for every shape, and no row knows of another."""

from collections.abc import Iterator

import pytest
import torch

from headrace.kernels.cpu import CpuKernels

DTYPES = [torch.float32, torch.bfloat16]
# (tokens, in, out): panels are 32 wide and 32 deep, tiles 16 high, blocks 32 high.
SHAPES = [
    (1, 1, 1),
    (1, 32, 32),
    (3, 33, 31),
    (15, 64, 16),
    (17, 40, 48),
    (33, 96, 65),
    (70, 576, 100),
    (300, 1536, 33),
]


@pytest.fixture
def one_thread() -> Iterator[None]:
    thread_count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(thread_count)


def randn(*size: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_close_to_sum(
    actual: torch.Tensor, exact: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> None:
    """Asserts the bound of a float32 sum in any order, and one rounding of the result."""
    magnitude = x.double().abs() @ weight.double().abs().T + (0 if bias is None else bias.double().abs())
    rounding = 2.0**-8 if actual.dtype == torch.bfloat16 else 2.0**-24
    bound = (x.shape[1] + 2) * 2.0**-24 * magnitude + rounding * exact.abs()
    assert ((actual.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("token_count", "in_count", "out_count"), SHAPES)
def test_a_linear_layer(
    cpu_kernels: CpuKernels, *, token_count: int, in_count: int, out_count: int, has_bias: bool, dtype: torch.dtype
) -> None:
    weight = randn(out_count, in_count, dtype=dtype)
    bias = randn(out_count, dtype=dtype, seed=1) if has_bias else None
    x = randn(token_count, in_count + 8, dtype=dtype, seed=2)[:, :in_count]
    layer = cpu_kernels.pack_linear(weight, bias)
    assert (layer.in_feature_count, layer.out_feature_count) == (in_count, out_count)
    exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert_close_to_sum(layer(x), exact, x, weight, bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("token_count", "in_count", "inner"), [(1, 8, 1), (5, 32, 16), (40, 100, 17), (33, 576, 96)])
def test_a_gated_layer(
    cpu_kernels: CpuKernels, *, token_count: int, in_count: int, inner: int, has_bias: bool, dtype: torch.dtype
) -> None:
    weight = randn(2 * inner, in_count, dtype=dtype) / in_count**0.5
    bias = randn(2 * inner, dtype=dtype, seed=1) if has_bias else None
    x = randn(token_count, in_count, dtype=dtype, seed=2)
    layer = cpu_kernels.pack_gated_linear(weight, bias)
    assert (layer.in_feature_count, layer.out_feature_count) == (in_count, inner)
    gate, up = (x.double() @ weight.double().T + (0 if bias is None else bias.double())).chunk(2, dim=1)
    exact = gate * torch.sigmoid(gate) * up
    # The gate's slope is at most 1.1, so errors of the sums are hardly larger in the product.
    error = in_count * 2.0**-23 * (x.double().abs() @ weight.double().abs().T).amax() * (1 + gate.abs() + up.abs())
    rounding = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-21
    assert ((layer(x).double() - exact).abs() <= error + rounding * exact.abs() + 1e-30).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_gated", [False, True])
def test_a_row_does_not_depend_on_the_others(cpu_kernels: CpuKernels, is_gated: bool, dtype: torch.dtype) -> None:
    weight, x = randn(96, 200, dtype=dtype), randn(150, 200, dtype=dtype, seed=1)
    layer = (cpu_kernels.pack_gated_linear if is_gated else cpu_kernels.pack_linear)(weight)
    together = layer(x)
    for count in (1, 2, 15, 16, 17, 31, 32, 33, 64, 149):
        assert torch.equal(layer(x[150 - count :]), together[150 - count :])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_change_nothing(cpu_kernels: CpuKernels, dtype: torch.dtype) -> None:
    layer, x = cpu_kernels.pack_linear(randn(500, 96, dtype=dtype)), randn(40, 96, dtype=dtype, seed=1)
    alone = layer(x)
    torch.set_num_threads(2)
    assert torch.equal(layer(x), alone)


def test_no_rows(cpu_kernels: CpuKernels) -> None:
    assert cpu_kernels.pack_linear(torch.ones(8, 4))(torch.ones(0, 4)).shape == (0, 8)


def test_packed_weights_outlive_one_another(cpu_kernels: CpuKernels) -> None:
    x = torch.ones(1, 64)
    kept = [cpu_kernels.pack_linear(torch.full((64, 64), float(value))) for value in range(8)]
    del kept[::2]
    replaced = cpu_kernels.pack_linear(torch.full((64, 64), 9.0))
    assert [float(layer(x)[0, 0]) for layer in (*kept, replaced)] == [64, 192, 320, 448, 576]


def test_a_row_of_another_width_is_refused(cpu_kernels: CpuKernels) -> None:
    with pytest.raises(RuntimeError, match="the weight must be"):
        cpu_kernels.pack_linear(torch.ones(64, 64))(torch.ones(1, 96))
