"""The green list is the contract's, of the size that gamma asks for, and of no vocabulary or batch."""

import pytest
import torch

from headrace.contract.watermark import is_green, philox4x32, threshold_of
from headrace.kernels import philox
from headrace.kernels.green_list import green_mask

KEYS = (1, 2**64 - 1, 0x9E3779B97F4A7C15)


def mask_of(key: int, previous: int, gamma: float, vocabulary_size: int) -> torch.Tensor:
    bits = key - 2**64 if key >= 2**63 else key
    column = [torch.tensor([value]) for value in (bits, previous, threshold_of(gamma))]
    return green_mask(*column, vocabulary_size)[0]


def test_the_contracts_random_numbers_are_those_of_the_kernels() -> None:
    # The first is a vector of the authors' own library.
    assert philox4x32((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    counter, key = (3, 0xFFFFFFFF, 7, 1), (0x12345678, 0x9ABCDEF0)
    words = philox.philox4x32(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(int(word) for word in words) == philox4x32(counter, key)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("previous", [0, 17, 49151])
def test_the_mask_is_the_contracts_rule(key: int, previous: int) -> None:
    found = mask_of(key, previous, 0.25, 403)
    rule = [
        is_green(token_id, previous_token_id=previous, key=key, threshold=threshold_of(0.25)) for token_id in range(403)
    ]
    assert found.tolist() == rule


@pytest.mark.parametrize("gamma", [0.001, 0.1, 0.25, 0.5, 0.9])
def test_gamma_is_the_share_of_green_tokens(gamma: float) -> None:
    size = 200_000
    deviation = (size * gamma * (1 - gamma)) ** 0.5
    assert abs(int(mask_of(5, 7, gamma, size).sum()) - size * gamma) < 5 * deviation


def test_lists_of_other_keys_and_tokens_are_independent() -> None:
    size = 100_000
    masks = [mask_of(key, previous, 0.5, size) for key, previous in ((5, 7), (6, 7), (5, 8))]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        shared = int((masks[first] & masks[second]).sum())
        assert abs(shared - size / 4) < 5 * (size * 3 / 16) ** 0.5


def test_a_larger_vocabulary_changes_no_token() -> None:
    assert torch.equal(mask_of(5, 7, 0.3, 1003), mask_of(5, 7, 0.3, 5000)[:1003])


def test_rows_do_not_touch_each_other() -> None:
    keys, previous, thresholds = torch.tensor([5, 6]), torch.tensor([7, 9]), torch.tensor([100, 60_000])
    both = green_mask(keys, previous, thresholds, 999)
    for row in range(2):
        alone = green_mask(keys[row, None], previous[row, None], thresholds[row, None], 999)
        assert torch.equal(both[row], alone[0])
