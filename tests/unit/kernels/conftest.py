"""The CPU operators, in the best build for this processor and in the one that every processor can run."""

import pytest
import torch

from headrace.kernels.build import default_cache_folder
from headrace.kernels.cpu import CpuKernels, load_cpu_kernels
from headrace.kernels.instruction_sets import PORTABLE, supported


@pytest.fixture(scope="session", params=["best", "portable"])
def cpu_kernels(request: pytest.FixtureRequest) -> CpuKernels:
    candidates = (PORTABLE,) if request.param == "portable" else supported(torch.cpu.get_capabilities())[:1]
    return load_cpu_kernels(default_cache_folder(), print, candidates=candidates)
