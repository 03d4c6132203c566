"""In which type a model computes when nobody says: the one in which it was saved, where that is fast."""

import pytest
import torch

from headrace.contract.errors import StartupError
from headrace.kernels.dispatch import select
from headrace.kernels.instruction_sets import INSTRUCTION_SETS
from headrace.shard.model_dtype import check_dtype, choose_dtype
from headrace.shard.weights import most_used_type


@pytest.mark.parametrize(
    ("stored_type", "is_bfloat16_fast", "expected"),
    [
        ("BF16", True, torch.bfloat16),
        ("F16", True, torch.bfloat16),
        ("Q8_0", True, torch.bfloat16),
        ("F32", True, torch.float32),
        ("F64", True, torch.float32),
        ("BF16", False, torch.float32),
        ("Q4_0", False, torch.float32),
    ],
)
def test_auto(stored_type: str, is_bfloat16_fast: bool, expected: torch.dtype) -> None:
    dtype, reason = choose_dtype("auto", stored_type, is_bfloat16_fast=is_bfloat16_fast)
    assert dtype == expected
    assert stored_type in reason
    assert str(expected).removeprefix("torch.") in reason


@pytest.mark.parametrize("is_bfloat16_fast", [True, False])
def test_what_is_asked_for_is_done(is_bfloat16_fast: bool) -> None:
    assert choose_dtype("float32", "BF16", is_bfloat16_fast=is_bfloat16_fast)[0] == torch.float32
    assert choose_dtype("bfloat16", "F32", is_bfloat16_fast=is_bfloat16_fast)[0] == torch.bfloat16
    with pytest.raises(StartupError, match="'float16' is none of auto, float32, bfloat16"):
        check_dtype("float16")


def test_small_tensors_do_not_decide() -> None:
    assert most_used_type([("F32", 10), ("Q8_0", 25), ("F32", 14), ("F16", 1)]) == "Q8_0"


def test_which_operators_are_fast() -> None:
    fast = [instructions.name for instructions in INSTRUCTION_SETS if instructions.multiplies_bfloat16]
    assert fast == ["amx", "avx512_bf16"]
    has_instructions = torch.cpu.get_capabilities().get("avx512_bf16", False)
    assert select(torch.device("cpu"), "cpu").is_bfloat16_fast == has_instructions
    assert not select(torch.device("cpu"), "reference").is_bfloat16_fast
