"""The likeliest tokens of a screened head are those of all its logits, to the last tie."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.kernels.build import default_cache_folder
from headrace.kernels.cpu import CpuKernels, load_cpu_kernels
from headrace.kernels.head import Head, PlainHead
from headrace.kernels.instruction_sets import supported
from headrace.kernels.panel_linear import PanelLinear
from headrace.kernels.quantization import WeightFormat
from headrace.kernels.reference import ReferenceKernels
from headrace.kernels.screened_head import SCREENED_ROW_LIMIT, ScreenedHead, make_screen


@pytest.fixture(scope="module")
def kernels() -> CpuKernels:
    return load(WeightFormat.AUTO)


def load(weight_format: WeightFormat) -> CpuKernels:
    best = supported(torch.cpu.get_capabilities())[0]
    if not best.uses_tiles:
        pytest.skip("this processor has no tiles")
    return load_cpu_kernels(default_cache_folder(), print, weight_format=weight_format, candidates=(best,))


def randn(*size: int, seed: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def check(kernels: CpuKernels, head: Head, hidden: torch.Tensor) -> None:
    assert isinstance(head, ScreenedHead)
    found, expected = head.likeliest(hidden), kernels.likeliest(head(hidden))
    assert torch.equal(found.token_ids, expected.token_ids)
    assert torch.equal(found.logits, expected.logits)


@pytest.mark.parametrize("is_compact", [True, False])
@pytest.mark.parametrize(("vocabulary", "width"), [(1, 32), (17, 64), (33, 96), (5000, 576), (49152, 64)])
def test_it_is_that_of_all_logits(kernels: CpuKernels, vocabulary: int, width: int, is_compact: bool) -> None:
    weight = randn(vocabulary, width, seed=1) * 0.05
    if not is_compact:
        # Of so many sizes that twelve bits do not hold them.
        weight *= 2.0 ** torch.randint(-60, 1, weight.shape, generator=torch.Generator().manual_seed(2))
    head = kernels.pack_head(weight.bfloat16())
    packed = kernels.pack_linear(weight.bfloat16())
    assert isinstance(packed, PanelLinear)
    # Anything fits where there are few weights.
    assert packed.panels.dtype == (torch.uint8 if is_compact or weight.numel() < 100 else torch.bfloat16)
    for row_count in (1, 2, 7, 8, 9, 16, 17, 31, 32, 33):
        check(kernels, head, randn(row_count, width, seed=row_count).bfloat16())


@pytest.mark.parametrize("weight_format", [WeightFormat.PLAIN, WeightFormat.COMPACT, WeightFormat.INT8])
def test_other_formats_have_no_screen(weight_format: WeightFormat) -> None:
    assert isinstance(load(weight_format).pack_head(randn(100, 64, seed=1).bfloat16()), PlainHead)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    row_count=st.integers(1, SCREENED_ROW_LIMIT),
    vocabulary=st.integers(1, 700),
    width=st.sampled_from([32, 64, 160, 256]),
    spread=st.sampled_from([0.0, 0.01, 1.0]),
    outlier=st.sampled_from([1.0, 50.0, 1e4]),
    scale=st.sampled_from([1e-20, 1e-6, 1.0, 1e6]),
)
def test_rows_that_are_nearly_alike_are_told_apart(
    kernels: CpuKernels,
    *,
    seed: int,
    row_count: int,
    vocabulary: int,
    width: int,
    spread: float,
    outlier: float,
    scale: float,
) -> None:
    """The largest logits differ by less than eight bits can tell, or not at all, and some inputs are much larger."""
    base = randn(1, width, seed=seed)
    weight = (base + spread * randn(vocabulary, width, seed=seed + 1)) * scale
    hidden = randn(row_count, width, seed=seed + 2)
    hidden[:, seed % width] *= outlier
    check(kernels, kernels.pack_head(weight.bfloat16()), hidden.bfloat16())


def test_the_lowest_among_equals_is_found_in_another_panel(kernels: CpuKernels) -> None:
    weight = torch.zeros(400, 64)
    weight[[77, 150, 399], 3] = 1.0
    weight[[20, 200], 3] = -1.0
    head = kernels.pack_head(weight.bfloat16())
    hidden = torch.zeros(3, 64)
    hidden[:, 3] = torch.tensor([2.0, -2.0, 0.0])
    found = head.likeliest(hidden.bfloat16())
    assert found.token_ids.tolist() == [77, 20, 0]
    assert found.logits.tolist() == [2.0, 2.0, 0.0]


@pytest.mark.parametrize("factor", [0.0, 1e-38, 1e-30, 1e14, 1e20, 1e37, torch.inf, torch.nan])
def test_inputs_of_any_size(kernels: CpuKernels, factor: float) -> None:
    head = kernels.pack_head(randn(300, 96, seed=1).bfloat16())
    hidden = randn(4, 96, seed=2)
    hidden[2] *= factor
    found = head.likeliest(hidden.bfloat16())
    expected = kernels.likeliest(head(hidden.bfloat16()))
    assert torch.equal(found.logits.nan_to_num(7.0), expected.logits.nan_to_num(7.0))
    is_number = ~expected.logits.isnan()
    assert torch.equal(found.token_ids[is_number], expected.token_ids[is_number])
    assert bool(is_number[[0, 1, 3]].all())


def test_the_strides_of_rows(kernels: CpuKernels) -> None:
    wide = randn(5, 200, seed=3).bfloat16()
    check(kernels, kernels.pack_head(randn(1000, 96, seed=4).bfloat16()), wide[:, 7:103])


def test_the_bound_holds() -> None:
    """What eight bits give is as near to the whole as the screen says, and not much nearer."""
    weight, hidden = (randn(500, 160, seed=5) * 0.3).bfloat16(), randn(64, 160, seed=6).bfloat16()
    screen = make_screen(weight)
    assert screen is not None
    rounded = screen.values.double() * screen.scales[:, None].double()
    distances = (hidden.double() @ (weight.double() - rounded).T).abs()
    bounds = hidden.double().norm(dim=1)[:, None] * screen.errors.double()
    assert bool((distances <= bounds).all())
    assert float((distances / bounds).max()) > 0.2
    assert bool((rounded.norm(dim=1) <= screen.norm).all())


@pytest.mark.parametrize(
    ("weight", "why"),
    [
        (torch.zeros(10, 33), "a width that tiles do not have"),
        (torch.full((10, 64), 1e30), "sums may overflow"),
        (torch.full((10, 64), torch.nan), "no numbers"),
    ],
)
def test_weights_without_a_screen(kernels: CpuKernels, weight: torch.Tensor, why: str) -> None:
    head = kernels.pack_head(weight.bfloat16())
    assert isinstance(head, PlainHead), why
    found = head.likeliest(torch.ones(2, weight.shape[1]).bfloat16())
    assert found.token_ids.shape == (2,)


def test_other_kernels_compute_all_logits(cpu_kernels: CpuKernels) -> None:
    weight, hidden = randn(100, 64, seed=7), randn(3, 64, seed=8)
    for head in (cpu_kernels.pack_head(weight), ReferenceKernels().pack_head(weight)):
        assert isinstance(head, PlainHead)
        assert torch.equal(head.likeliest(hidden).token_ids, head(hidden).argmax(dim=1))


def test_wrong_tensors_are_refused(kernels: CpuKernels) -> None:
    head = kernels.pack_head(randn(100, 64, seed=9).bfloat16())
    with pytest.raises(RuntimeError, match="the screen must be"):
        head.likeliest(randn(3, 128, seed=1).bfloat16())
    with pytest.raises(RuntimeError, match="x must be bfloat16"):
        head.likeliest(randn(3, 64, seed=1))
