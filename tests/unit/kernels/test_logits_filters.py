"""The distribution that is reported as drawn from is Transformers' chain of warpers, and the one that is drawn from."""

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from headrace.kernels.logits_filters import filtered_scores
from headrace.kernels.reference_sampling import sample

VOCABULARY = 300


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.6, 0, 0.9), (1.7, 20, 1.0), (0.8, 12, 0.7), (1.2, 1, 0.1)]
)
def test_filtered_scores_are_those_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    row_count = 40
    logits = torch.randn(row_count, VOCABULARY, generator=torch.Generator().manual_seed(2)) * 3
    columns = {
        "temperature": torch.full((row_count,), temperature),
        "top_k": torch.full((row_count,), top_k),
        "top_p": torch.full((row_count,), top_p),
    }
    drawn = sample(logits, **columns, seeds=torch.arange(row_count), positions=torch.arange(row_count))
    found = filtered_scores(logits, **columns, token_ids=drawn).log_softmax(dim=-1)
    chain = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        chain.append(TopKLogitsWarper(top_k))
    chain.append(TopPLogitsWarper(top_p))
    expected = chain(torch.zeros(row_count, 1), logits.clone()).log_softmax(dim=-1)
    torch.testing.assert_close(found, expected)
    assert found.gather(1, drawn[:, None]).isfinite().all()


def test_a_greedy_row_keeps_its_scores() -> None:
    logits = torch.randn(2, VOCABULARY)
    found = filtered_scores(
        logits,
        torch.tensor([0.0, 0.5]),
        torch.tensor([3, 3]),
        torch.tensor([0.5, 1.0]),
        logits.argmax(dim=-1),
    )
    assert torch.equal(found[0], logits[0])
    assert found[1].isfinite().sum() == 3


def test_the_drawn_token_is_kept_whatever_the_filters_say() -> None:
    logits = torch.arange(5.0)[None]
    found = filtered_scores(logits, torch.ones(1), torch.tensor([2]), torch.ones(1), torch.tensor([0]))
    assert found.isfinite().nonzero()[:, 1].tolist() == [0, 3, 4]
