"""The CPU draws and log-probabilities, against the reference's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.kernels.cpu import CpuKernels
from headrace.kernels.philox import SECOND_NUMBER
from headrace.kernels.reference import ReferenceKernels

DTYPES = [torch.float32, torch.bfloat16]
REFERENCE = ReferenceKernels()


def randn(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("row_count", "vocabulary"), [(1, 1), (1, 17), (3, 1000), (1, 49152), (40, 5000)])
def test_the_likeliest(cpu_kernels: CpuKernels, row_count: int, vocabulary: int, dtype: torch.dtype) -> None:
    # In bfloat16 many logits are equal.
    logits = randn(row_count, vocabulary).to(dtype)
    actual, expected = cpu_kernels.likeliest(logits), REFERENCE.likeliest(logits)
    assert torch.equal(actual.token_ids, expected.token_ids)
    assert torch.equal(actual.logits, expected.logits)


def test_the_likeliest_among_equals_and_infinities(cpu_kernels: CpuKernels) -> None:
    logits = torch.full((4, 40_000), -torch.inf)
    logits[0, [39_999, 20_001, 30_000]] = 2.0
    logits[1, 39_998] = -1e38
    logits[2, 5], logits[2, 38_000] = torch.nan, 3.0
    found = cpu_kernels.likeliest(logits)
    assert found.token_ids[:2].tolist() == [20_001, 39_998]
    assert found.logits[2].isnan()
    assert found.logits[3] == -torch.inf


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 0.99, 1.0])
@pytest.mark.parametrize(("row_count", "vocabulary"), [(1, 1), (3, 31), (2, 33), (9, 1000), (5, 49152)])
def test_only_what_masks_allow_is_kept(
    cpu_kernels: CpuKernels, row_count: int, vocabulary: int, share: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = randn(row_count, vocabulary).to(dtype)
    rows = torch.randperm(row_count, generator=generator)[: max(1, row_count - 1)]
    word_count = -(-vocabulary // 32) + row_count % 2  # more than there are tokens
    bits = torch.rand(len(rows), word_count, 4, 8, generator=generator) < share
    # Runs as a grammar makes them: words that allow everything, and words that allow nothing.
    bits[:, ::3], bits[:, 1::5] = True, False
    bytes_ = (bits * 2 ** torch.arange(8)).sum(-1).to(torch.uint8)
    allowed = bytes_.view(torch.int32).squeeze(-1).contiguous()
    actual, expected = logits.clone(), logits.clone()
    peaks = cpu_kernels.keep_allowed(actual, rows, allowed)
    assert torch.equal(peaks, REFERENCE.keep_allowed(expected, rows, allowed))
    assert torch.equal(actual, expected)
    for mask, row in enumerate(rows.tolist()):
        is_kept = bits[mask].flatten()[:vocabulary]
        assert torch.equal(expected[row], logits[row].masked_fill(~is_kept, -torch.inf))
        assert peaks[mask] == expected[row].max()
    left = [row for row in range(row_count) if row not in rows.tolist()]
    assert torch.equal(expected[left], logits[left])


def test_a_mask_that_is_too_short_or_of_no_row_is_refused(cpu_kernels: CpuKernels) -> None:
    logits, allowed = torch.zeros(2, 65), torch.zeros(1, 2, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="a bit for each token"):
        cpu_kernels.keep_allowed(logits, torch.tensor([0]), allowed)
    with pytest.raises(RuntimeError, match="rows has 2 outside"):
        cpu_kernels.keep_allowed(logits[:, :64].contiguous(), torch.tensor([2]), allowed)


def test_tokens_of_no_weight_cost_no_more(cpu_kernels: CpuKernels) -> None:
    """Results that underflow are not computed, and what is next to them is as it was."""
    spread = torch.arange(0, -240, -0.125)[None]
    columns = {
        "temperature": torch.ones(1),
        "top_k": torch.zeros(1, dtype=torch.int64),
        "top_p": torch.ones(1),
        "seeds": torch.tensor([3]),
        "positions": torch.tensor([4]),
    }
    assert torch.equal(cpu_kernels.sample(spread, **columns), REFERENCE.sample(spread, **columns))


@settings(max_examples=60, deadline=None)
@given(
    row_count=st.integers(1, 5),
    vocabulary=st.sampled_from([1, 2, 31, 1024, 3000]),
    temperature=st.sampled_from([0.0, 0.01, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 5000]),
    top_p=st.sampled_from([1.0, 0.999, 0.6, 0.01]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_draws_as_the_reference(
    cpu_kernels: CpuKernels,
    *,
    row_count: int,
    vocabulary: int,
    temperature: float,
    top_k: int,
    top_p: float,
    dtype: torch.dtype,
    seed: int,
) -> None:
    logits = (randn(row_count, vocabulary, seed=abs(seed) % 1000) * 3).to(dtype)
    columns = {
        "temperature": torch.full((row_count,), temperature),
        "top_k": torch.full((row_count,), top_k),
        "top_p": torch.full((row_count,), top_p),
        "seeds": torch.full((row_count,), seed),
        "positions": torch.arange(row_count) * 2**31 | SECOND_NUMBER * (seed % 2),
    }
    # NOTE: an exponential may differ by a rounding, which shifts the bounds of tokens by less than 1e-6: a number drawn
    # that close to one is not to be expected in these few.
    assert torch.equal(cpu_kernels.sample(logits, **columns), REFERENCE.sample(logits, **columns))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.95), (0, 0.9999), (300, 1.0), (19_000, 1.0), (50, 0.5)])
@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 4.0, 20.0])
def test_draws_as_the_reference_from_few_tokens_and_from_many(
    cpu_kernels: CpuKernels, scale: float, top_k: int, top_p: float, dtype: torch.dtype
) -> None:
    """The likeliest tokens are found by how far they are from the first one, which may be any distance."""
    logits = (randn(8, 20_000) * scale).to(dtype)
    logits[4:, 1_000:19_500] = -torch.inf
    logits[6:, ::3] = -torch.inf
    columns = {
        "temperature": torch.tensor([0.2, 0.7, 1.0, 4.0] * 2),
        "top_k": torch.full((8,), top_k),
        "top_p": torch.full((8,), top_p),
        "seeds": torch.arange(8),
        "positions": torch.arange(8),
    }
    assert torch.equal(cpu_kernels.sample(logits, **columns), REFERENCE.sample(logits, **columns))


def test_rows_draw_by_themselves(cpu_kernels: CpuKernels) -> None:
    logits = randn(6, 2000)
    columns = {
        "temperature": torch.tensor([0.0, 1.0, 0.5, 2.0, 1.0, 0.0]),
        "top_k": torch.tensor([0, 0, 5, 100, 0, 3]),
        "top_p": torch.tensor([1.0, 0.9, 1.0, 0.5, 1.0, 0.1]),
        "seeds": torch.tensor([1, 2, 3, 4, 5, 6]),
        "positions": torch.tensor([9, 8, 7, 6, 5, 4]),
    }
    together = cpu_kernels.sample(logits, **columns)
    for row in range(6):
        alone = cpu_kernels.sample(logits[row : row + 1], **{k: v[row : row + 1] for k, v in columns.items()})
        assert alone == together[row]


def test_a_token_of_no_weight_is_never_drawn(cpu_kernels: CpuKernels) -> None:
    logits = torch.full((1000, 64), -torch.inf)
    logits[:, [3, 40]] = torch.tensor([0.0, -2.0])
    drawn = cpu_kernels.sample(
        logits,
        temperature=torch.ones(1000),
        top_k=torch.zeros(1000, dtype=torch.int64),
        top_p=torch.ones(1000),
        seeds=torch.arange(1000),
        positions=torch.zeros(1000, dtype=torch.int64),
    )
    assert set(drawn.tolist()) == {3, 40}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.8), (40, 0.9)])
@pytest.mark.parametrize("vocabulary", [40, 512, 513, 5000, 49152])
def test_draws_from_what_masks_leave_as_the_reference(
    cpu_kernels: CpuKernels, vocabulary: int, top_k: int, top_p: float, dtype: torch.dtype
) -> None:
    """Most tokens are barred, whole runs of them: those are passed over, and the last token is reached all the same."""
    generator = torch.Generator().manual_seed(vocabulary)
    row_count = 24
    logits = randn(row_count, vocabulary).to(dtype)
    is_run = torch.rand(row_count, -(-vocabulary // 64), generator=generator) < 0.1
    is_kept = is_run.repeat_interleave(64, dim=1)[:, :vocabulary]
    is_kept[:, torch.randint(vocabulary, (3,), generator=generator)] = True
    is_kept[::3], is_kept[::3, -1] = False, True
    is_kept[::3, 0] = True
    logits[~is_kept] = -torch.inf
    columns = {
        "temperature": torch.linspace(0.3, 2.0, row_count),
        "top_k": torch.full((row_count,), top_k),
        "top_p": torch.full((row_count,), top_p),
        "seeds": torch.arange(row_count),
        "positions": torch.arange(row_count) * 7,
    }
    drawn = cpu_kernels.sample(logits, **columns)
    assert torch.equal(drawn, REFERENCE.sample(logits, **columns))
    assert is_kept[torch.arange(row_count), drawn].all()


def test_draws_are_as_frequent_as_they_are_likely(cpu_kernels: CpuKernels) -> None:
    count, vocabulary = 20_000, 1300
    weights = torch.zeros(vocabulary)
    weights[torch.tensor([0, 511, 512, 1024, 1299])] = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25])
    drawn = cpu_kernels.sample(
        weights.log().expand(count, -1).contiguous(),
        temperature=torch.ones(count),
        top_k=torch.zeros(count, dtype=torch.int64),
        top_p=torch.ones(count),
        seeds=torch.arange(count),
        positions=torch.zeros(count, dtype=torch.int64),
    )
    shares = torch.bincount(drawn, minlength=vocabulary) / count
    torch.testing.assert_close(shares, weights, atol=0.015, rtol=0.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("vocabulary", "top_count"), [(1, 1), (50, 0), (50, 50), (3000, 7)])
def test_logprobs(cpu_kernels: CpuKernels, vocabulary: int, top_count: int, dtype: torch.dtype) -> None:
    logits = (randn(4, vocabulary) * 5).to(dtype)
    token_ids = torch.randint(0, vocabulary, (4,), generator=torch.Generator().manual_seed(1))
    actual = cpu_kernels.logprobs(logits, token_ids, top_count)
    expected = REFERENCE.logprobs(logits, token_ids, top_count)
    assert torch.equal(actual.ranks, expected.ranks)
    assert torch.equal(actual.top_token_ids, expected.top_token_ids)
    torch.testing.assert_close(actual.logprobs, expected.logprobs, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(actual.top_logprobs, expected.top_logprobs, atol=2e-6, rtol=2e-6)


def test_no_rows(cpu_kernels: CpuKernels) -> None:
    assert cpu_kernels.likeliest(torch.ones(0, 8)).token_ids.shape == (0,)
