"""Weights of bfloat16 in twelve bits: the same weights to the last bit, and the same results."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.kernels.build import default_cache_folder
from headrace.kernels.cpu import CpuKernels, load_cpu_kernels
from headrace.kernels.instruction_sets import PORTABLE, supported
from headrace.kernels.panel_linear import PanelLinear
from headrace.kernels.quantization import WeightFormat

STEP_WIDTH = 32
"""Inputs, and outputs, of a step of a panel."""
CODE_COUNT, OUTLIER_COUNT = 16, 12
"""What a step has room for: different upper bytes, and weights with others."""
SHAPES = [(1, 32, 32), (3, 64, 31), (40, 576, 66), (700, 1536, 96), (5, 50, 70)]
"""Tokens, inputs and outputs."""


@dataclass(frozen=True, kw_only=True)
class Build:
    """One build of the operators, with both forms of weights."""

    compact: CpuKernels
    plain: CpuKernels

    def is_compact(self, weight: torch.Tensor) -> bool:
        """Whether a weight fits into twelve bits, in which it must then be exactly the same."""
        layer, plain = self.compact.pack_linear(weight), self.plain.pack_linear(weight)
        assert isinstance(layer, PanelLinear)
        assert isinstance(plain, PanelLinear)
        expanded = self.compact.expand(layer)
        assert expanded.packing == plain.packing
        assert torch.equal(expanded.panels.view(torch.int16), plain.panels.view(torch.int16))
        return layer.packing != plain.packing


@pytest.fixture(scope="module", params=["best", "portable"])
def build(request: pytest.FixtureRequest) -> Build:
    candidates = (PORTABLE,) if request.param == "portable" else supported(torch.cpu.get_capabilities())[:1]
    compact, plain = (
        load_cpu_kernels(default_cache_folder(), print, candidates=candidates, weight_format=weight_format)
        for weight_format in (WeightFormat.COMPACT, WeightFormat.PLAIN)
    )
    return Build(compact=compact, plain=plain)


def randn(*size: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def step_of(upper_bytes: list[int]) -> torch.Tensor:
    """Returns a step whose first weights have these upper bytes, and the others the first of them."""
    upper = torch.full((STEP_WIDTH**2,), upper_bytes[0])
    upper[: len(upper_bytes)] = torch.tensor(upper_bytes)
    bits = upper * 256 + torch.arange(STEP_WIDTH**2) * 7 % 256
    return bits.to(torch.uint16).view(torch.bfloat16).view(STEP_WIDTH, STEP_WIDTH)


@pytest.mark.parametrize(("token_count", "in_count", "out_count"), SHAPES)
def test_a_layer_is_that_of_the_plain_weight(build: Build, *, token_count: int, in_count: int, out_count: int) -> None:
    weight, bias, x = randn(out_count, in_count), randn(out_count), randn(token_count, in_count, seed=1)
    assert build.is_compact(weight)
    assert torch.equal(build.compact.pack_linear(weight, bias)(x), build.plain.pack_linear(weight, bias)(x))
    gated = torch.cat([weight, weight.flip(0)])
    assert torch.equal(build.compact.pack_gated_linear(gated)(x), build.plain.pack_gated_linear(gated)(x))


@settings(deadline=None, max_examples=100)
@given(upper_bytes=st.sets(st.integers(0, 255), min_size=1, max_size=CODE_COUNT), seed=st.integers(0, 2**31))
def test_every_bit_of_any_weights_with_sixteen_upper_bytes_comes_back(
    build: Build, upper_bytes: set[int], seed: int
) -> None:
    """Numbers that are none, infinities and negative zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    upper = torch.tensor(sorted(upper_bytes))[torch.randint(len(upper_bytes), (64 * 96,), generator=generator)]
    bits = upper * 256 + torch.randint(256, (64 * 96,), generator=generator)
    assert build.is_compact(bits.to(torch.uint16).view(torch.bfloat16).view(96, 64))


def test_a_few_weights_may_have_other_upper_bytes(build: Build) -> None:
    most = CODE_COUNT + OUTLIER_COUNT
    assert build.is_compact(step_of(list(range(100, 100 + most))))
    assert not build.is_compact(step_of(list(range(100, 100 + most + 1))))


def test_weights_that_differ_too_much_stay_plain(build: Build) -> None:
    weight, x = randn(96, 64), randn(3, 64)
    weight[40] = torch.logspace(-30, 30, 64).to(torch.bfloat16)
    assert not build.is_compact(weight)
    assert torch.equal(build.compact.pack_linear(weight)(x), build.plain.pack_linear(weight)(x))


def test_unless_asked_only_builds_that_gain_by_it_compact() -> None:
    weight = randn(64, 64)
    for candidates in ((PORTABLE,), supported(torch.cpu.get_capabilities())[:1]):
        kernels = load_cpu_kernels(
            default_cache_folder(), print, candidates=candidates, weight_format=WeightFormat.AUTO
        )
        layer, wide = kernels.pack_linear(weight), kernels.pack_linear(weight.float())
        assert isinstance(layer, PanelLinear)
        assert isinstance(wide, PanelLinear)
        assert (layer.panels.dtype == torch.uint8) is kernels.is_bfloat16_fast
        assert wide.panels.dtype == torch.float32


def test_panels_of_another_size_are_refused(build: Build) -> None:
    layer = build.compact.pack_linear(randn(64, 64))
    assert isinstance(layer, PanelLinear)
    with pytest.raises(RuntimeError, match="panels must be"):
        build.compact.expand(layer.repacked(layer.panels[:-1], layer.packing))
    with pytest.raises(RuntimeError, match="the weight must be"):
        layer.repacked(layer.panels[:-1600], layer.packing)(randn(1, 64))
    with pytest.raises(RuntimeError, match="the weight must be"):
        layer(torch.ones(1, 64))
