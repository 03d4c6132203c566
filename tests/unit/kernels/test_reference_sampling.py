"""The sampler draws from exactly the distribution that temperature, top-k and top-p leave."""

import pytest
import torch

from headrace.kernels.dispatch import select
from headrace.kernels.reference_sampling import keep_likeliest

KERNELS = select(torch.device("cpu"), "reference")
VOCABULARY = 3001


def draw(
    logits: torch.Tensor,
    *,
    temperature: float | list[float] = 1.0,
    top_k: int | list[int] = 0,
    top_p: float | list[float] = 1.0,
    seeds: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    row_count = logits.shape[0]

    def column(value: float | list[float], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(value if isinstance(value, list) else [value] * row_count, dtype=dtype)

    return KERNELS.sample(
        logits,
        temperature=column(temperature, torch.float32),
        top_k=column(top_k, torch.int64),
        top_p=column(top_p, torch.float32),
        seeds=torch.zeros(row_count, dtype=torch.int64) if seeds is None else seeds,
        positions=torch.arange(row_count) if positions is None else positions,
    )


def exact_probabilities(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """Sorts and loops, as the definition does."""
    probabilities = (logits.double() / temperature).softmax(dim=-1)
    order = sorted(range(len(logits)), key=lambda i: (-logits[i].item(), i))[: top_k or None]
    mass = sum(probabilities[i].item() for i in order)
    kept, reached = [], 0.0
    for index in order:
        kept.append(index)
        reached += probabilities[index].item()
        if reached >= top_p * mass:
            break
    result = torch.zeros_like(probabilities)
    result[kept] = probabilities[kept]
    return result / result.sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.5, 7, 1.0), (1.0, 0, 0.6), (0.8, 12, 0.8), (1.0, 1, 1.0), (2.0, 25, 0.999)],
)
def test_the_distribution_is_exact(temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(40, generator=torch.Generator().manual_seed(1)) * 2
    count = 40_000
    drawn = draw(logits.expand(count, -1), temperature=temperature, top_k=top_k, top_p=top_p)
    expected = exact_probabilities(logits, temperature, top_k, top_p)
    found = torch.bincount(drawn, minlength=40)
    assert found[expected == 0].sum() == 0
    likely = expected * count >= 5
    terms = (found - expected * count)[likely].square() / (expected * count)[likely]
    degrees = max(1, int(likely.sum()) - 1)
    assert terms.sum().item() < degrees + 5 * (2 * degrees) ** 0.5 + 5


def test_temperature_zero_takes_the_lowest_of_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 3.0], [2.0, -1.0, 2.0, 2.0]])
    assert draw(logits, temperature=0.0, top_k=2, top_p=0.1).tolist() == [1, 0]


def test_rows_follow_their_own_parameters() -> None:
    logits = torch.randn(6, VOCABULARY, generator=torch.Generator().manual_seed(2))
    logits[3] += 5 * torch.arange(VOCABULARY).eq(17)
    drawn = draw(
        logits, temperature=[0.0, 1.0, 0.0, 1e-4, 1.0, 1.0], top_k=[0, 1, 5, 0, 0, 0], top_p=[1, 1, 1, 1, 1e-6, 1]
    )
    likeliest = logits.argmax(dim=-1)
    assert drawn[:5].tolist() == likeliest[:5].tolist()


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (50, 1.0), (0, 0.9), (0, 0.999), (2000, 0.97)])
def test_a_draw_does_not_depend_on_the_batch(top_k: int, top_p: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(24, VOCABULARY, generator=generator) * torch.rand(24, 1, generator=generator) * 4
    seeds = torch.randint(-(2**62), 2**62, (24,), generator=generator)
    positions = torch.randint(0, 4096, (24,), generator=generator)
    temperature = [0.5 + 0.05 * row for row in range(24)]
    parameters = {"top_k": top_k, "top_p": top_p}
    together = draw(logits, temperature=temperature, seeds=seeds, positions=positions, **parameters)
    for rows in ([5], [23, 0], list(range(23, -1, -1))):
        some = draw(
            logits[rows],
            temperature=[temperature[row] for row in rows],
            seeds=seeds[rows],
            positions=positions[rows],
            **parameters,
        )
        assert some.tolist() == together[rows].tolist()


def test_a_nucleus_wider_than_the_guess_is_found() -> None:
    logits = torch.zeros(4, VOCABULARY)
    logits[:, 0] = 1.0
    seeds = torch.arange(4)
    drawn = torch.cat([draw(logits, top_p=0.9, seeds=seeds, positions=torch.full((4,), i)) for i in range(300)])
    # The nucleus is the likeliest token and the lowest ids of the equal rest.
    wanted = 0.9 * (torch.e + VOCABULARY - 1)
    assert drawn.max() < wanted
    assert drawn.max() > 0.95 * wanted


def test_excluded_tokens_are_never_drawn() -> None:
    logits = torch.full((500, 10), -torch.inf)
    logits[:, [2, 9]] = 0.0
    assert set(draw(logits).tolist()) == {2, 9}


def test_half_precision_logits_draw_as_float32_ones() -> None:
    logits = torch.randn(50, VOCABULARY, generator=torch.Generator().manual_seed(4)).bfloat16()
    assert torch.equal(draw(logits, top_p=0.9), draw(logits.float(), top_p=0.9))


def test_equal_scores_are_kept_from_the_lowest_id() -> None:
    scores = torch.tensor([[1.0, 2.0, 1.0, 2.0, 1.0]] * 6)
    kept = keep_likeliest(scores, torch.tensor([0, 1, 2, 3, 4, 5]))
    assert [row.nonzero().flatten().tolist() for row in kept] == [
        [],
        [1],
        [1, 3],
        [0, 1, 3],
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4],
    ]


def test_logprobs_agree_with_log_softmax() -> None:
    logits = torch.randn(7, VOCABULARY, generator=torch.Generator().manual_seed(5)) * 3
    token_ids = torch.arange(7) * 100
    found = KERNELS.logprobs(logits, token_ids, 5)
    expected = logits.double().log_softmax(dim=-1)
    torch.testing.assert_close(found.logprobs.double(), expected[range(7), token_ids], atol=1e-5, rtol=0)
    order = expected.argsort(dim=-1, descending=True)
    assert torch.equal(found.top_token_ids, order[:, :5])
    torch.testing.assert_close(found.top_logprobs.double(), expected.gather(1, order[:, :5]), atol=1e-5, rtol=0)
    assert found.ranks.tolist() == [order[row].tolist().index(row * 100) + 1 for row in range(7)]


def test_logprobs_list_equals_by_id_and_rank_them_alike() -> None:
    found = KERNELS.logprobs(torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0]]), torch.tensor([4]), 4)
    assert found.top_token_ids.tolist() == [[1, 2, 4, 0]]
    assert found.ranks.tolist() == [1]


def test_logprobs_without_rivals_are_empty_columns() -> None:
    found = KERNELS.logprobs(torch.zeros(2, 4), torch.tensor([0, 3]), 0)
    assert found.top_token_ids.shape == found.top_logprobs.shape == (2, 0)
