"""The Triton operators equal the reference, in Triton's interpreter, and are offered to the right devices."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from headrace.kernels.dispatch import KernelsUnavailable, select
from headrace.kernels.gpu import loader
from headrace.kernels.quantization import WeightFormat

INTERPRETED = Path(__file__).parent / "interpreted"
NEEDS_TRITON = pytest.mark.skipif(find_spec("triton") is None, reason="the package triton is not installed")


@NEEDS_TRITON
def test_the_operators_equal_the_reference_in_the_interpreter() -> None:
    # A process of its own: Triton decides when it is imported whether it interprets, and for good.
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", str(INTERPRETED)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_they_are_not_for_the_cpu() -> None:
    with pytest.raises(KernelsUnavailable, match="run on cuda devices, not on cpu"):
        select(torch.device("cpu"), "triton")


def test_without_triton_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "find_spec", lambda _: None)
    with pytest.raises(KernelsUnavailable, match="package triton"):
        select(torch.device("cuda"), "triton")


def test_weights_in_eight_bits_are_refused() -> None:
    with pytest.raises(KernelsUnavailable, match="keep no weights as int8"):
        select(torch.device("cuda"), "triton", weight_format=WeightFormat.INT8)


@NEEDS_TRITON
def test_a_cuda_device_gets_them_by_name() -> None:
    assert select(torch.device("cuda"), "triton").name == "triton"


def test_a_cuda_device_gets_the_reference_unless_they_are_asked_for() -> None:
    assert select(torch.device("cuda")).name == "reference"
