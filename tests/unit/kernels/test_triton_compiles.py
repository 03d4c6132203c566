"""Every Triton kernel compiles for a GPU, which takes no GPU."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

if find_spec("triton") is None:
    pytest.skip("the package triton is not installed", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from headrace.kernels.gpu import attention, attention_kernels, rows, sampling, sampling_kernels
from headrace.kernels.gpu.triton_kernels import TritonKernels

TARGET = GPUTarget("cuda", 90, 32)
OPTIONS = {"num_warps", "num_stages"}
TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64", torch.int32: "i32", torch.int64: "i64"}


class Launches:
    """Takes the place of `launch`, and compiles what it is given instead."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __call__(self, kernel: Any, grid: tuple[int, ...], *arguments: object, **given: Any) -> None:
        assert len(grid) <= 3
        options = {name: value for name, value in given.items() if name in OPTIONS} | {"enable_fp_fusion": True}
        constants = {name: value for name, value in given.items() if name not in OPTIONS}
        named = dict(zip(kernel.arg_names, arguments, strict=False))
        # As a launch does: a number that is 1 becomes a constant.
        constants |= {name: 1 for name, value in named.items() if isinstance(value, int) and value == 1}
        signature = {name: type_of(value) for name, value in named.items()}
        signature |= dict.fromkeys(constants, "constexpr")
        assert list(signature) == kernel.arg_names
        # A GPU launch tells that pointers are aligned; loads are then wide.
        alignments = {
            (place,): [["tt.divisibility", 16]]
            for place, argument in enumerate(arguments)
            if isinstance(argument, torch.Tensor)
        }
        source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=alignments)
        compiled = triton.compile(source, target=TARGET, options=options)
        # What every GPU with matrix units grants a program.
        assert compiled.metadata.shared <= 99 * 1024
        assert compiled.asm["cubin"]
        self.names.add(kernel.fn.__name__)


def type_of(argument: object) -> str | tuple[str, ...]:
    if isinstance(argument, tuple):
        return ("i64",) * len(argument)
    if isinstance(argument, torch.Tensor):
        return "*" + TYPES[argument.dtype]
    return "fp32" if isinstance(argument, float) else "i32"


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Launches:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    launches = Launches()
    for module in (attention, rows, sampling):
        monkeypatch.setattr(module, "launch", launches)
    return launches


def zeros(*size: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.zeros(*size, dtype=dtype)


def kernels_of(module: object) -> set[str]:
    """Returns the names of what a module offers to launch; the others are parts of these."""
    return {name for name, value in vars(module).items() if isinstance(value, triton.JITFunction) and name[0] != "_"}


def test_the_operators_on_tokens(launches: Launches) -> None:
    kernels, x = TritonKernels(), zeros(3, 1024)
    kernels.add_rms_norm(x, x, x[0], 1e-5)
    kernels.silu_mul(x)
    kernels.rotary_and_write_kv(
        *(zeros(3, 8, 80), zeros(3, 2, 80), zeros(3, 2, 80)),
        positions=torch.arange(3),
        cos_sin=zeros(9, 32, dtype=torch.float32),
        key_cache=zeros(4, 2, 16, 80),
        value_cache=zeros(4, 2, 16, 80),
        slot_ids=torch.arange(3),
    )
    assert launches.names == {"_norm_row", "_silu_mul", "_rotate_and_write"}


@pytest.mark.parametrize("lengths", [(1, 2), (2,)], ids=str)
def test_attention(launches: Launches, lengths: tuple[int, ...]) -> None:
    kernels, cache = TritonKernels(), zeros(4, 2, 16, 128)
    # Wide enough a table that the context is split.
    tables = zeros(len(lengths), 70, dtype=torch.int32)
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    batch = kernels.prepare_attention(tables, starts, starts[1:] + 3, block_size=16)
    kernels.paged_attention(zeros(sum(lengths), 8, 128), cache, cache, batch, scale=0.1)
    assert launches.names == kernels_of(attention_kernels)


def test_sampling(launches: Launches) -> None:
    kernels, logits, ids = TritonKernels(), zeros(2, 9000), torch.arange(2)
    ones = zeros(2, dtype=torch.float32) + 1
    kernels.sample(logits, temperature=ones, top_k=ids * 0, top_p=ones, seeds=ids, positions=ids)
    kernels.logprobs(logits, ids, 1)
    kernels.keep_allowed(logits, ids, zeros(2, 282, dtype=torch.int32))
    assert launches.names == kernels_of(sampling_kernels)
