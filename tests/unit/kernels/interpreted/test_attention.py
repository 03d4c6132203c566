"""Paged attention in Triton equals the reference, and a row's result does not depend on the others."""

from dataclasses import dataclass

import pytest
import torch

from headrace.kernels.gpu import attention
from headrace.kernels.gpu.triton_kernels import TritonKernels
from headrace.kernels.reference import ReferenceKernels

KERNELS = TritonKernels(is_interpreted=True)
REFERENCE = ReferenceKernels()
TOLERANCES = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Shape:
    rows: tuple[tuple[int, int], ...]
    """(tokens in the step, tokens in all) of each row."""
    head_count: int = 6
    kv_head_count: int = 2
    head_dim: int = 16
    block_size: int = 4


SHAPES = [
    Shape(rows=((1, 1),)),
    Shape(rows=((1, 9), (1, 4), (1, 40), (1, 70), (1, 5))),
    Shape(rows=((7, 7), (3, 20), (1, 2), (25, 43), (1, 37), (3, 19))),
    Shape(rows=((5, 5), (1, 3)), head_count=4, kv_head_count=4, head_dim=8, block_size=1),
    Shape(rows=((2, 31), (1, 31), (24, 64)), head_count=9, kv_head_count=3, head_dim=64, block_size=16),
    Shape(rows=((3, 8), (1, 12), (2, 140)), head_count=5, kv_head_count=1, head_dim=10, block_size=3),
    Shape(rows=((2, 5), (1, 4)), head_count=70, kv_head_count=1, head_dim=8),
    Shape(rows=((2, 2),) * 9, head_count=1, kv_head_count=1),
]


@dataclass
class Case:
    query: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    block_tables: torch.Tensor
    query_starts: torch.Tensor
    context_lengths: torch.Tensor


def build(shape: Shape, dtype: torch.dtype = torch.float32) -> Case:
    generator = torch.Generator().manual_seed(len(shape.rows))
    counts = [-(-context // shape.block_size) for _, context in shape.rows]
    order = torch.randperm(sum(counts) + 3, generator=generator).tolist()
    # A block id past a row's context would be far outside of the cache.
    tables = torch.full((len(counts), max(counts) + 1), 10**9, dtype=torch.int32)
    both = torch.full(
        (len(order), 2, shape.kv_head_count, shape.block_size, shape.head_dim), torch.nan, dtype=torch.float32
    )
    for row, (_, context) in enumerate(shape.rows):
        tables[row, : counts[row]] = torch.tensor([order.pop() for _ in range(counts[row])])
        for position in range(context):
            place = tables[row, position // shape.block_size], slice(None), slice(None), position % shape.block_size
            both[place] = torch.randn(2, shape.kv_head_count, shape.head_dim, generator=generator)
    lengths = torch.tensor([0] + [length for length, _ in shape.rows])
    query = torch.randn(int(lengths.sum()), shape.head_count, shape.head_dim, generator=generator)
    return Case(
        query=query.to(dtype),
        key_cache=both.to(dtype)[:, 0].contiguous(),
        value_cache=both.to(dtype)[:, 1].contiguous(),
        block_tables=tables,
        query_starts=lengths.cumsum(0).int(),
        context_lengths=torch.tensor([context for _, context in shape.rows], dtype=torch.int32),
    )


def attend(kernels: TritonKernels | ReferenceKernels, case: Case, scale: float = 0.3) -> torch.Tensor:
    batch = kernels.prepare_attention(
        case.block_tables, case.query_starts, case.context_lengths, block_size=case.key_cache.shape[2]
    )
    return kernels.paged_attention(case.query, case.key_cache, case.value_cache, batch, scale=scale)


@pytest.mark.parametrize("split_size", [32, 512])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_reference(shape: Shape, split_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SPLIT_SIZE", split_size)
    case = build(shape)
    found = attend(KERNELS, case)
    assert found.is_contiguous()
    torch.testing.assert_close(found, attend(REFERENCE, case), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[4]], ids=str)
def test_narrow_numbers(shape: Shape, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SPLIT_SIZE", 32)
    case = build(shape, dtype)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(attend(KERNELS, case), attend(REFERENCE, case), atol=tolerance, rtol=tolerance)


def test_more_splits_than_are_merged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SPLIT_SIZE", 8)
    case = build(Shape(rows=((1, 300), (1, 7)), head_dim=8))
    torch.testing.assert_close(attend(KERNELS, case), attend(REFERENCE, case), atol=3e-6, rtol=1e-5)


def test_each_cache_has_strides_of_its_own() -> None:
    case = build(SHAPES[2])
    expected = attend(KERNELS, case)
    both = torch.stack((case.key_cache, case.value_cache), dim=1)
    case.key_cache = both[:, 0]
    # Tokens before heads, which is another way to lie in memory that the protocol names.
    case.value_cache = case.value_cache.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(attend(KERNELS, case), expected)


def test_large_scores_do_not_overflow() -> None:
    case = build(SHAPES[2])
    torch.testing.assert_close(attend(KERNELS, case, 300.0), attend(REFERENCE, case, 300.0), atol=1e-3, rtol=1e-3)


def test_a_row_does_not_depend_on_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SPLIT_SIZE", 32)
    # Alone, the row of 9 is one split; beside the row of 70 it goes through the merge.
    case = build(Shape(rows=((1, 70), (5, 12), (1, 9), (20, 31), (1, 33))))
    whole = attend(KERNELS, case)
    for row in range(5):
        start, end = case.query_starts[row : row + 2].tolist()
        count = -(-int(case.context_lengths[row]) // 4)
        alone = Case(
            query=case.query[start:end].contiguous(),
            key_cache=case.key_cache,
            value_cache=case.value_cache,
            block_tables=case.block_tables[row : row + 1, :count],
            query_starts=torch.tensor([0, end - start], dtype=torch.int32),
            context_lengths=case.context_lengths[row : row + 1],
        )
        assert torch.equal(attend(KERNELS, alone), whole[start:end])


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_row_does_not_notice_that_another_is_broken() -> None:
    case = build(SHAPES[2])
    whole = attend(KERNELS, case)
    case.key_cache[case.block_tables[0, 0]] = torch.nan
    case.value_cache[case.block_tables[0, 0]] = torch.inf
    broken = attend(KERNELS, case)
    assert broken[: case.query_starts[1]].isnan().any()
    assert torch.equal(whole[case.query_starts[1] :], broken[case.query_starts[1] :])
