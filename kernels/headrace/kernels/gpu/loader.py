"""Whether the Triton operators can run here, and their import, which needs Triton, only when asked for."""

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.kernels.gpu.triton_kernels import TritonKernels


def is_triton_installed() -> bool:
    """Whether the package triton is there; torch's builds for CUDA and ROCm bring it."""
    return find_spec("triton") is not None


def load_triton_kernels() -> "TritonKernels":
    """Returns the operators for CUDA and ROCm devices."""
    module = importlib.import_module("headrace.kernels.gpu.triton_kernels")
    kernels: TritonKernels = module.TritonKernels()
    return kernels
