"""The random numbers are Philox's, and a draw is a function of seed and position."""

import pytest
import torch

from headrace.kernels.philox import SECOND_NUMBER, philox4x32, uniform

# From the known-answer file that the authors publish with Random123.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def words(values: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([value]) for value in values)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert tuple(int(word) for word in philox4x32(words(counter), words(key))) == expected


def test_a_number_is_the_first_53_bits_of_its_counter() -> None:
    seed, position = 0x299F31D0A4093822, 0x85A308D3243F6A88
    counter = (position & 0xFFFFFFFF, position >> 32, 0, 0)
    word0, word1, _, _ = philox4x32(words(counter), words((seed & 0xFFFFFFFF, seed >> 32)))
    # int64 holds the bits of an unsigned position just as well.
    found = uniform(torch.tensor([seed]), torch.tensor([position - (1 << 64)]))
    assert found.item() == (((int(word0) << 32) | int(word1)) >> 11) / 2**53


def test_negative_bits_are_another_seed() -> None:
    numbers = uniform(torch.tensor([-1, 1, -(1 << 63), 0]), torch.tensor([5, 5, 5, 5]))
    assert len(set(numbers.tolist())) == 4
    assert ((numbers >= 0) & (numbers < 1)).all()


def test_a_number_does_not_depend_on_its_neighbours() -> None:
    seeds, positions = torch.arange(1000) * 77, torch.arange(1000) % 13
    together = uniform(seeds, positions)
    alone = torch.cat([uniform(seeds[i : i + 1], positions[i : i + 1]) for i in range(1000)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("number", [0, SECOND_NUMBER])
@pytest.mark.parametrize("varies", ["seed", "position"])
def test_numbers_are_even_and_independent(varies: str, number: int) -> None:
    count = 200_000
    steps, fixed = torch.arange(count), torch.full((count,), 12345)
    numbers = uniform(steps, fixed | number) if varies == "seed" else uniform(fixed, steps | number)
    histogram = torch.histc(numbers, bins=100, min=0.0, max=1.0)
    chi_square = ((histogram - count / 100).square() / (count / 100)).sum().item()
    assert chi_square < 170  # 99 degrees of freedom: one in a hundred thousand is above
    neighbours = torch.corrcoef(torch.stack((numbers[:-1], numbers[1:])))[0, 1].item()
    assert abs(neighbours) < 0.01


def test_the_two_numbers_of_a_position_have_nothing_to_do_with_each_other() -> None:
    """They fall evenly into the squares of ten by ten."""
    count = 200_000
    seeds, positions = torch.full((count,), 9), torch.arange(count)
    squares = (uniform(seeds, positions) * 10).floor() * 10 + (uniform(seeds, positions | SECOND_NUMBER) * 10).floor()
    histogram = torch.histc(squares, bins=100, min=0.0, max=100.0)
    assert ((histogram - count / 100).square() / (count / 100)).sum().item() < 170
