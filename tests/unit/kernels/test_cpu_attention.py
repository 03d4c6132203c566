"""The CPU attention: right over any blocks, and the same to the last bit however a prompt is cut."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.kernels.cpu import CpuKernels

DTYPES = [torch.float32, torch.bfloat16]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Rows over blocks that lie in no order, in a cache whose other slots hold no numbers."""

    query: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    block_tables: torch.Tensor
    query_counts: list[int]
    contexts: list[int]

    def run(self, kernels: CpuKernels, *, scale: float = 0.2) -> torch.Tensor:
        starts = torch.tensor([0, *self.query_counts]).cumsum(0).int()
        batch = kernels.prepare_attention(
            self.block_tables, starts, torch.tensor(self.contexts).int(), block_size=self.key_cache.shape[2]
        )
        return kernels.paged_attention(self.query, self.key_cache, self.value_cache, batch, scale=scale)

    def row(self, index: int, query_begin: int, query_end: int) -> "Case":
        """Returns a case with tokens [query_begin, query_end) of one row, the later ones not yet computed."""
        start = sum(self.query_counts[:index])
        return Case(
            query=self.query[start + query_begin : start + query_end],
            key_cache=self.key_cache,
            value_cache=self.value_cache,
            block_tables=self.block_tables[index : index + 1],
            query_counts=[query_end - query_begin],
            contexts=[self.contexts[index] - self.query_counts[index] + query_end],
        )


def make_case(
    rows: list[tuple[int, int]], *, heads: int, kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype
) -> Case:
    """Makes rows of (tokens of this step, tokens before)."""
    generator = torch.Generator().manual_seed(len(rows) + head_dim)
    contexts = [query_count + before for query_count, before in rows]
    width = max(-(-context // block_size) for context in contexts) + 1
    block_count = len(rows) * width + 1
    size = (block_count, kv_heads, block_size, head_dim)
    key_cache, value_cache = torch.full(size, torch.nan), torch.full(size, torch.nan)
    tables = torch.randperm(block_count, generator=generator)[: len(rows) * width].view(len(rows), width).int()
    for table, context in zip(tables, contexts, strict=True):
        positions = torch.arange(context)
        blocks, offsets = table[positions // block_size].long(), positions % block_size
        key_cache[blocks, :, offsets] = torch.randn(context, kv_heads, head_dim, generator=generator)
        value_cache[blocks, :, offsets] = torch.randn(context, kv_heads, head_dim, generator=generator)
        table[-(-context // block_size) :] = -12345
    query_counts = [query_count for query_count, _ in rows]
    return Case(
        query=torch.randn(sum(query_counts), heads, head_dim, generator=generator).to(dtype),
        key_cache=key_cache.to(dtype),
        value_cache=value_cache.to(dtype),
        block_tables=tables,
        query_counts=query_counts,
        contexts=contexts,
    )


def exact_attention(case: Case, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the attention in float64, and the same over the magnitudes of the values."""
    results: list[torch.Tensor] = []
    magnitudes: list[torch.Tensor] = []
    block_size, group = case.key_cache.shape[2], case.query.shape[1] // case.key_cache.shape[1]
    start = 0
    for row, (query_count, context) in enumerate(zip(case.query_counts, case.contexts, strict=True)):
        positions = torch.arange(context)
        blocks, offsets = case.block_tables[row, positions // block_size].long(), positions % block_size
        keys = case.key_cache[blocks, :, offsets].double().repeat_interleave(group, dim=1)
        values = case.value_cache[blocks, :, offsets].double().repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", case.query[start : start + query_count].double(), keys) * scale
        hidden = positions[None] > torch.arange(context - query_count, context)[:, None]
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        results.append(torch.einsum("hqk,khd->qhd", weights, values))
        magnitudes.append(torch.einsum("hqk,khd->qhd", weights, values.abs()))
        start += query_count
    return torch.cat(results), torch.cat(magnitudes)


def assert_attends(kernels: CpuKernels, case: Case) -> None:
    actual = case.run(kernels)
    exact, magnitude = exact_attention(case, 0.2)
    # bfloat16: one rounding for each weight and one for the result. float32: the scores' sums, seen by the exponential.
    relative = 2.0**-8 if actual.dtype == torch.bfloat16 else 2.0**-17
    assert ((actual.double() - exact).abs() <= relative * (magnitude + exact.abs())).all()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 300)), min_size=1, max_size=4),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 8),
    head_dim=st.sampled_from([2, 8, 16, 24, 64, 80, 128]),
    block_size=st.sampled_from([1, 3, 16, 64]),
    dtype=st.sampled_from(DTYPES),
)
def test_attention(
    cpu_kernels: CpuKernels,
    *,
    rows: list[tuple[int, int]],
    kv_heads: int,
    group: int,
    head_dim: int,
    block_size: int,
    dtype: torch.dtype,
) -> None:
    case = make_case(
        rows, heads=kv_heads * group, kv_heads=kv_heads, head_dim=head_dim, block_size=block_size, dtype=dtype
    )
    assert_attends(cpu_kernels, case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "rows", [[(1, 0)], [(1, 2000)], [(600, 0)], [(200, 300), (1, 0), (1, 255), (1, 256), (30, 500)]]
)
def test_attention_past_the_sizes_of_its_parts(
    cpu_kernels: CpuKernels, rows: list[tuple[int, int]], dtype: torch.dtype
) -> None:
    assert_attends(cpu_kernels, make_case(rows, heads=6, kv_heads=2, head_dim=64, block_size=16, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("group", "head_dim"), [(1, 64), (3, 64), (4, 128), (7, 32), (8, 64), (9, 64), (3, 80)])
def test_a_token_is_the_same_in_any_chunk_and_any_company(
    cpu_kernels: CpuKernels, *, group: int, head_dim: int, dtype: torch.dtype
) -> None:
    """Few query rows and many are multiplied in different ways, and must give the same sums."""
    rows = [(700, 30), (1, 600), (50, 0)]
    case = make_case(rows, heads=group * 2, kv_heads=2, head_dim=head_dim, block_size=16, dtype=dtype)
    together = case.run(cpu_kernels)
    for begin, end in ((0, 1), (699, 700), (513, 514), (5, 20), (100, 400), (690, 700)):
        assert torch.equal(case.row(0, begin, end).run(cpu_kernels), together[begin:end])
    assert torch.equal(case.row(1, 0, 1).run(cpu_kernels), together[700:701])
    assert torch.equal(case.row(2, 3, 50).run(cpu_kernels), together[704:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_and_repetition_change_nothing(cpu_kernels: CpuKernels, dtype: torch.dtype) -> None:
    case = make_case([(1, 900), (90, 300)], heads=4, kv_heads=2, head_dim=64, block_size=16, dtype=dtype)
    first = case.run(cpu_kernels)
    thread_count = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(case.run(cpu_kernels), first)
    finally:
        torch.set_num_threads(thread_count)


def test_large_scores_do_not_overflow(cpu_kernels: CpuKernels) -> None:
    case = make_case([(3, 400)], heads=1, kv_heads=1, head_dim=8, block_size=16, dtype=torch.float32)
    exact, _ = exact_attention(case, 1e4)
    torch.testing.assert_close(case.run(cpu_kernels, scale=1e4).double(), exact, atol=1e-3, rtol=1e-3)


def test_what_is_no_number_stays_in_its_row(cpu_kernels: CpuKernels) -> None:
    case = make_case([(1, 40), (1, 40)], heads=2, kv_heads=1, head_dim=16, block_size=16, dtype=torch.bfloat16)
    case.value_cache[case.block_tables[0, 0]] = torch.nan
    attended = case.run(cpu_kernels)
    assert attended[0].isnan().all()
    assert attended[1].isfinite().all()


def test_a_block_outside_of_the_cache_is_refused(cpu_kernels: CpuKernels) -> None:
    case = make_case([(1, 40)], heads=2, kv_heads=1, head_dim=16, block_size=16, dtype=torch.float32)
    case.block_tables[0, 1] = case.key_cache.shape[0]
    with pytest.raises(RuntimeError, match="block_tables"):
        case.run(cpu_kernels)


def test_more_tokens_than_the_context_are_refused(cpu_kernels: CpuKernels) -> None:
    case = make_case([(5, 0)], heads=2, kv_heads=1, head_dim=16, block_size=16, dtype=torch.float32)
    case.contexts[0] = 4
    with pytest.raises(RuntimeError, match="row 0 brings 5 tokens of 4"):
        case.run(cpu_kernels)
