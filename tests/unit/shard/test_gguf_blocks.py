"""Blocks of GGUF tensors: what they expand to is what the library that defines them makes of them."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from headrace.kernels.quantization import expand
from headrace.shard.gguf_blocks import unpack

KINDS = [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1]


def quantize(kind: GGMLQuantizationType, *, scale: float = 1.0) -> NDArray[np.uint8]:
    values = np.random.default_rng(3).normal(size=(7, 96)).astype(np.float32) * np.float32(scale)
    values[2] = 0
    packed: NDArray[np.uint8] = gguf.quantize(values, kind)
    return packed


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e4])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_expand_to_what_the_library_reads(kind: GGMLQuantizationType, scale: float) -> None:
    packed = quantize(kind, scale=scale)
    weight = unpack(packed, kind)
    assert weight is not None
    assert weight.shape == (7, 96)
    expected = torch.from_numpy(gguf.dequantize(packed, kind))
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(expand(weight, dtype), expected.to(dtype))


def test_other_types_are_left_to_the_library() -> None:
    assert unpack(quantize(GGMLQuantizationType.Q5_0), GGMLQuantizationType.Q5_0) is None


@pytest.mark.parametrize("kind", KINDS)
def test_scales_that_are_no_numbers_are_left_to_the_library(kind: GGMLQuantizationType) -> None:
    packed = quantize(kind)
    packed[0, :2] = np.array([np.inf], dtype=np.float16).view(np.uint8)
    assert unpack(packed, kind) is None


def test_a_minimum_beyond_half_precision_is_left_to_the_library() -> None:
    packed = quantize(GGMLQuantizationType.Q4_0)
    packed[0, :2] = np.array([60000], dtype=np.float16).view(np.uint8)
    assert unpack(packed, GGMLQuantizationType.Q4_0) is None


def test_the_example_model_stays_in_its_blocks(example_model: Path) -> None:
    reader = gguf.GGUFReader(example_model)
    kinds = {tensor.tensor_type for tensor in reader.tensors if len(tensor.shape) == 2}
    assert kinds <= set(KINDS)
