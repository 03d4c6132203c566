"""Weights in blocks, as GGUF files hold them."""

import torch

from headrace.kernels.quantization import BlockWeight


def make_blocks(out_count: int, in_count: int, *, has_minima: bool, seed: int = 0) -> BlockWeight:
    """Makes a weight with scales of every size, the smallest below what half precision holds in full."""
    generator = torch.Generator().manual_seed(seed)
    low, high = (0, 16) if has_minima else (-128, 128)
    values = torch.randint(low, high, (out_count, in_count), generator=generator)
    blocks = (out_count, in_count // 32)
    exponents = torch.randint(-23, 2, blocks, generator=generator)
    scales = torch.rand(blocks, generator=generator) * 2.0**exponents
    return BlockWeight(
        values=values.to(torch.uint8 if has_minima else torch.int8),
        scales=scales.half(),
        minima=(-torch.rand(blocks, generator=generator) * scales * 8).half() if has_minima else None,
    )
