"""Paged attention equals attention over the whole sequence, for every shape of batch."""

from dataclasses import dataclass

import pytest
import torch

from headrace.kernels.dispatch import select

KERNELS = select(torch.device("cpu"), "reference")


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
    Shape(rows=((1, 9), (1, 4), (1, 40), (1, 41), (1, 5))),
    Shape(rows=((7, 7), (3, 20), (1, 2), (16, 33), (1, 17), (3, 19))),
    Shape(rows=((5, 5), (1, 3)), head_count=4, kv_head_count=4, head_dim=8, block_size=1),
    Shape(rows=((2, 31), (1, 31), (1, 64)), head_count=9, kv_head_count=3, head_dim=64, block_size=16),
    Shape(rows=((3, 8), (1, 12)), head_count=5, kv_head_count=1, head_dim=10, block_size=3),
]


@dataclass
class Case:
    query: torch.Tensor
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    block_tables: torch.Tensor
    query_starts: torch.Tensor
    context_lengths: torch.Tensor


def build(shape: Shape) -> Case:
    generator = torch.Generator().manual_seed(len(shape.rows))

    def randn(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    counts = [-(-context // shape.block_size) for _, context in shape.rows]
    order = torch.randperm(sum(counts) + 3, generator=generator).tolist()
    tables = torch.full((len(counts), max(counts) + 1), 10**9, dtype=torch.int32)
    cache_shape = (len(order), shape.kv_head_count, shape.block_size, shape.head_dim)
    # Whatever was in the blocks before must not matter.
    key_cache, value_cache = torch.full(cache_shape, torch.nan), torch.full(cache_shape, torch.nan)
    keys, values = [], []
    for row, (_, context) in enumerate(shape.rows):
        blocks = [order.pop() for _ in range(counts[row])]
        tables[row, : counts[row]] = torch.tensor(blocks)
        keys.append(randn(context, shape.kv_head_count, shape.head_dim))
        values.append(randn(context, shape.kv_head_count, shape.head_dim))
        for position in range(context):
            block, offset = blocks[position // shape.block_size], position % shape.block_size
            key_cache[block, :, offset], value_cache[block, :, offset] = keys[row][position], values[row][position]
    lengths = torch.tensor([0] + [length for length, _ in shape.rows])
    return Case(
        query=randn(int(lengths.sum()), shape.head_count, shape.head_dim),
        keys=keys,
        values=values,
        key_cache=key_cache,
        value_cache=value_cache,
        block_tables=tables,
        query_starts=lengths.cumsum(0).int(),
        context_lengths=torch.tensor([context for _, context in shape.rows], dtype=torch.int32),
    )


def attend_naively(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
    """One head of one token at a time, in float64."""
    output = torch.zeros_like(query, dtype=torch.float64)
    group = query.shape[1] // keys.shape[1]
    for index in range(query.shape[0]):
        visible = keys.shape[0] - query.shape[0] + index + 1
        for head in range(query.shape[1]):
            key, value = keys[:visible, head // group].double(), values[:visible, head // group].double()
            output[index, head] = (key @ query[index, head].double() * scale).softmax(dim=0) @ value
    return output


def attend_paged(case: Case, shape: Shape, scale: float) -> torch.Tensor:
    batch = KERNELS.prepare_attention(
        case.block_tables, case.query_starts, case.context_lengths, block_size=shape.block_size
    )
    return KERNELS.paged_attention(case.query, case.key_cache, case.value_cache, batch, scale=scale)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_attention_over_the_whole_sequence(shape: Shape) -> None:
    case = build(shape)
    found = attend_paged(case, shape, 0.3)
    assert found.shape == case.query.shape
    assert found.is_contiguous()
    for row, (start, end) in enumerate(zip(case.query_starts[:-1], case.query_starts[1:], strict=True)):
        expected = attend_naively(case.query[start:end], case.keys[row], case.values[row], 0.3)
        torch.testing.assert_close(found[start:end].double(), expected, atol=2e-6, rtol=1e-5)


def test_a_row_does_not_notice_that_another_is_broken() -> None:
    shape = SHAPES[2]
    case = build(shape)
    whole = attend_paged(case, shape, 0.3)
    case.key_cache[case.block_tables[0, 0]] = torch.nan
    case.value_cache[case.block_tables[0, 0]] = torch.inf
    broken = attend_paged(case, shape, 0.3)
    assert broken[: case.query_starts[1]].isnan().any()
    assert torch.equal(whole[case.query_starts[1] :], broken[case.query_starts[1] :])


def test_bfloat16_stays_close_to_float32() -> None:
    shape = SHAPES[4]
    case = build(shape)
    wide = attend_paged(case, shape, 0.125)
    case.query, case.key_cache, case.value_cache = (
        tensor.bfloat16() for tensor in (case.query, case.key_cache, case.value_cache)
    )
    narrow = attend_paged(case, shape, 0.125)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), wide, atol=0.03, rtol=0.03)
