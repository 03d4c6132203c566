"""The type in which a model computes: as asked, or the one in which it was saved where that is fast."""

import torch

from headrace.contract.errors import StartupError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
AUTO = "auto"
_WIDE_TYPES = {"F32", "F64"}
"""Stored types that lose digits in bfloat16 which the model was saved with for a reason."""


def check_dtype(asked: str) -> None:
    """Checks an option.

    Raises:
        StartupError: there is no such type.
    """
    if asked not in {AUTO, *_DTYPES}:
        raise StartupError(f"engine option dtype: {asked!r} is none of {', '.join([AUTO, *_DTYPES])}")


def choose_dtype(asked: str, stored_type: str, *, is_bfloat16_fast: bool) -> tuple[torch.dtype, str]:
    """Returns the type of weights, activations and KV cache, and a line for the log that says why.

    NOTE: float16 becomes bfloat16, which has its range and fewer digits, as other
    servers do on processors that cannot multiply float16. Blocks of eight bits and
    less fit into bfloat16 as they are.

    Args:
        asked: `auto`, `float32` or `bfloat16`.
        stored_type: As WeightSource names it.
        is_bfloat16_fast: Whether the operators multiply bfloat16 faster than float32.
    """
    if asked != AUTO:
        return _DTYPES[asked], f"computing in {asked}, as asked"
    if stored_type in _WIDE_TYPES:
        return torch.float32, f"computing in float32: the weights are stored in {stored_type}"
    if not is_bfloat16_fast:
        return torch.float32, f"computing in float32: these operators have no fast bfloat16 (weights are {stored_type})"
    return torch.bfloat16, f"computing in bfloat16: the weights are stored in {stored_type}"
