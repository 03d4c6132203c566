"""Drawing and log-probabilities in Triton equal the reference, draw by draw."""

import pytest
import torch

from headrace.kernels.gpu import sampling
from headrace.kernels.gpu.triton_kernels import TritonKernels
from headrace.kernels.philox import SECOND_NUMBER
from headrace.kernels.reference import ReferenceKernels

KERNELS = TritonKernels(is_interpreted=True)
REFERENCE = ReferenceKernels()
VOCABULARY = 301


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_CHUNK_SIZE", 128)


def logits_of(row_count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(row_count)
    return (torch.randn(row_count, VOCABULARY, generator=generator) * 3).to(dtype)


def draw(kernels: TritonKernels | ReferenceKernels, logits: torch.Tensor, **given: list[float]) -> torch.Tensor:
    row_count = logits.shape[0]
    generator = torch.Generator().manual_seed(row_count + 1)

    def column(name: str, default: float, dtype: torch.dtype) -> torch.Tensor:
        values = given.get(name, [default])
        return torch.tensor([values[row % len(values)] for row in range(row_count)], dtype=dtype)

    return kernels.sample(
        logits,
        temperature=column("temperature", 1.0, torch.float32),
        top_k=column("top_k", 0, torch.int64),
        top_p=column("top_p", 1.0, torch.float32),
        # Bits of unsigned seeds, the sign bit as well; positions past 32 bits, and the second number of some.
        seeds=torch.randint(-(2**63), 2**63 - 1, (row_count,), generator=generator),
        positions=torch.randint(0, 2**40, (row_count,), generator=generator)
        | torch.arange(row_count) % 2 * SECOND_NUMBER,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"temperature": [0.0, 0.7, 1e-4, 2.0]},
        {"top_k": [1, 7, 0, 300, 400]},
        {"top_p": [0.6, 0.999, 1.0, 1e-6]},
        {"temperature": [0.0, 1.3, 0.8], "top_k": [20, 0, 5, 50], "top_p": [0.9, 0.5, 1.0, 0.97, 0.8]},
    ],
    ids=str,
)
def test_every_draw_is_the_references(dtype: torch.dtype, given: dict[str, list[float]]) -> None:
    logits = logits_of(16, dtype)
    before = logits.clone()
    assert torch.equal(draw(KERNELS, logits, **given), draw(REFERENCE, logits, **given))
    assert torch.equal(logits, before)


def test_equal_logits_are_kept_and_drawn_from_the_lowest_id() -> None:
    logits = torch.zeros(12, VOCABULARY)
    logits[:, 200] = 1.0
    for given in ({"top_k": [70]}, {"top_p": [0.4]}, {"temperature": [0.0]}):
        assert torch.equal(draw(KERNELS, logits, **given), draw(REFERENCE, logits, **given))
    assert draw(KERNELS, torch.zeros(2, VOCABULARY), temperature=[0.0]).tolist() == [0, 0]


def test_excluded_tokens_are_never_drawn() -> None:
    logits = torch.full((16, VOCABULARY), -torch.inf)
    logits[:, [70, 300]] = 0.0
    assert set(draw(KERNELS, logits).tolist()) == {70, 300}


def test_strided_logits() -> None:
    wide = logits_of(8)
    for logits in (wide[::3], wide[:, 7:290], wide[:, ::2], wide[:1].expand(3, -1)):
        assert torch.equal(draw(KERNELS, logits), draw(REFERENCE, logits))


def test_a_vocabulary_of_one_chunk_and_a_batch_of_none() -> None:
    assert torch.equal(draw(KERNELS, logits_of(5)[:, :3]), draw(REFERENCE, logits_of(5)[:, :3]))
    assert draw(KERNELS, logits_of(3)[:0]).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocabulary", [VOCABULARY, 128, 31])
def test_only_what_masks_allow_is_kept(vocabulary: int, dtype: torch.dtype) -> None:
    wide = logits_of(6, dtype)
    generator = torch.Generator().manual_seed(vocabulary)
    allowed = torch.randint(-(2**31), 2**31 - 1, (4, -(-vocabulary // 32) + 1), generator=generator, dtype=torch.int32)
    allowed[1], allowed[2] = 0, -1
    rows = torch.tensor([4, 0, 2, 1])
    actual, expected = wide.clone()[:, :vocabulary], wide.clone()[:, :vocabulary]
    peaks = KERNELS.keep_allowed(actual, rows, allowed)
    assert torch.equal(peaks, REFERENCE.keep_allowed(expected, rows, allowed))
    assert torch.equal(actual, expected)
    assert peaks[1] == -torch.inf
    assert KERNELS.keep_allowed(actual, rows[:0], allowed[:0]).shape == (0,)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_likeliest(dtype: torch.dtype) -> None:
    logits = logits_of(9, dtype)
    logits[2, [5, 120, 299]] = 50.0
    logits[3] = -torch.inf
    logits[4, 140] = torch.nan
    logits[5, 130] = torch.inf
    found, expected = KERNELS.likeliest(logits), REFERENCE.likeliest(logits)
    assert torch.equal(found.logits.nan_to_num(nan=7e7), expected.logits.nan_to_num(nan=7e7))
    finite = expected.logits.isfinite()
    assert torch.equal(found.token_ids[finite], expected.token_ids[finite])
    assert found.token_ids[2] == 5
    assert ((found.token_ids >= 0) & (found.token_ids < VOCABULARY)).all()


@pytest.mark.parametrize("top_count", [0, 1, 5, VOCABULARY])
def test_logprobs(top_count: int) -> None:
    logits = logits_of(6)
    logits[1, :] = 2.0
    logits[2, 50:] = -torch.inf
    token_ids = torch.tensor([0, 300, 7, 100, 200, 63])
    found = KERNELS.logprobs(logits, token_ids, top_count)
    expected = REFERENCE.logprobs(logits, token_ids, top_count)
    torch.testing.assert_close(found.logprobs, expected.logprobs, atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(found.top_logprobs, expected.top_logprobs, atol=2e-6, rtol=1e-6)
    assert torch.equal(found.ranks, expected.ranks)
    assert torch.equal(found.top_token_ids, expected.top_token_ids)
