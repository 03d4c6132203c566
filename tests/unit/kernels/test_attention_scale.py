"""A factor of the scores that would turn their order around is refused where it comes in, by every version."""

import math

import pytest
import torch

from headrace.kernels.cpu import CpuKernels
from headrace.kernels.decoder import DecoderParts
from headrace.kernels.dispatch import Kernels, select

WRONG = [0.0, -0.125, math.nan, math.inf]
COMPLAINT = "the scale of attention must be positive and finite"


def attend(kernels: Kernels, scale: float) -> torch.Tensor:
    batch = kernels.prepare_attention(
        torch.zeros(1, 1, dtype=torch.int32),
        torch.tensor([0, 1], dtype=torch.int32),
        torch.ones(1, dtype=torch.int32),
        block_size=4,
    )
    cache = torch.ones(1, 1, 4, 16)
    return kernels.paged_attention(torch.ones(1, 1, 16), cache, cache, batch, scale=scale)


@pytest.mark.parametrize("scale", WRONG)
def test_attention_refuses_a_scale_that_is_not_positive(cpu_kernels: CpuKernels, scale: float) -> None:
    for kernels in (cpu_kernels, select(torch.device("cpu"), "reference")):
        assert attend(kernels, 0.25).eq(1.0).all()
        with pytest.raises(ValueError, match=COMPLAINT):
            attend(kernels, scale)


@pytest.mark.parametrize("scale", WRONG)
def test_a_decoder_refuses_a_scale_that_is_not_positive(scale: float) -> None:
    with pytest.raises(ValueError, match=COMPLAINT):
        DecoderParts(
            layers=(), final_norm=torch.ones(4), key_caches=(), value_caches=(), cos_sin=torch.zeros(1, 4),
            head_count=1, head_dim=4, norm_epsilon=1e-5, scale=scale,
        )  # fmt: skip
