"""Takes the blocks of quantized GGUF tensors apart: the values and their scales, with nothing expanded."""

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from headrace.kernels.quantization import BlockWeight

_BLOCK_SIZE = 32
_NIBBLES_OFFSET = np.float16(-8)
"""What the values of Q4_0 count from, in scales."""


def unpack(data: NDArray[np.uint8], kind: gguf.GGMLQuantizationType) -> BlockWeight | None:
    """Returns the blocks of a tensor; None if they are of another type than Q4_0, Q4_1 and Q8_0, or not all finite.

    Args:
        data: [out_feature, bytes of a row], as the file holds them: for each block its scale and, in Q4_1, its
            minimum, in half precision, then 32 bytes, or 16 whose lower halves are the first 16 values.
        kind: The type of the tensor.
    """
    minima: NDArray[np.float16] | None = None
    if kind == gguf.GGMLQuantizationType.Q8_0:
        blocks = data.reshape(data.shape[0], -1, 2 + _BLOCK_SIZE)
        values: NDArray[np.int8] | NDArray[np.uint8] = blocks[..., 2:].view(np.int8)
    elif kind == gguf.GGMLQuantizationType.Q4_0:
        blocks = data.reshape(data.shape[0], -1, 2 + _BLOCK_SIZE // 2)
        values = _nibbles(blocks[..., 2:])
        # Half precision holds eight times a scale exactly, or as an infinity.
        with np.errstate(over="ignore"):
            minima = _halves(blocks, 0) * _NIBBLES_OFFSET
    elif kind == gguf.GGMLQuantizationType.Q4_1:
        blocks = data.reshape(data.shape[0], -1, 4 + _BLOCK_SIZE // 2)
        values = _nibbles(blocks[..., 4:])
        minima = _halves(blocks, 1)
    else:
        return None
    scales = _halves(blocks, 0)
    if not np.isfinite(scales).all() or not (minima is None or np.isfinite(minima).all()):
        return None
    return BlockWeight(
        values=torch.from_numpy(np.ascontiguousarray(values).reshape(data.shape[0], -1)),
        scales=torch.from_numpy(scales),
        minima=None if minima is None else torch.from_numpy(minima),
    )


def _halves(blocks: NDArray[np.uint8], place: int) -> NDArray[np.float16]:
    """Returns one of the numbers before the values, [out_feature, block]."""
    numbers: NDArray[np.float16] = np.ascontiguousarray(blocks[..., 2 * place : 2 * place + 2]).view(np.float16)[..., 0]
    return np.ascontiguousarray(numbers)


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns the halves of bytes, the lower ones first."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1)
