"""Triton's compiler behind types, and launching on the device that holds the tensors."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Protocol, cast

import torch
import triton


class JitFunction(Protocol):
    """A function in Triton's language: called from others of its kind, or launched on a grid."""

    def __call__(self, *arguments: Any) -> Any:  # noqa: ANN401 - Triton has no types
        """Is inlined into the calling function."""
        ...

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        """Returns what launches it, one program for each point of the grid."""
        ...


def jit(function: Callable[..., Any]) -> JitFunction:
    """Compiles a function when it is first launched, once for each set of constants and dtypes."""
    return cast("JitFunction", triton.jit(function))


def launch(
    kernel: JitFunction,
    grid: tuple[int, ...],
    first: torch.Tensor,
    /,
    *others: torch.Tensor | float | tuple[int, ...],
    **constants: object,
) -> None:
    """Launches a kernel on the device of its first argument, which need not be the thread's current one."""
    with torch.cuda.device(first.device) if first.is_cuda else nullcontext():
        # Said explicitly, because the default differs between versions of Triton, and with it the last bits.
        kernel[grid](first, *others, enable_fp_fusion=True, **constants)


def next_power_of_two(count: int) -> int:
    """Returns the smallest power of two that is at least `count`: every tile has such a size."""
    return 1 << (count - 1).bit_length()


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """Returns the tensor with elements side by side in its last dimension; a copy only if they are not."""
    return x if x.stride(-1) == 1 else x.contiguous()
