"""Random numbers that are a function of (seed, position): Philox4x32-10 in integer tensor operations.

Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3"
(SC 2011), with the round and key constants of that paper. There is no state:
the seed is the key and the position is the counter, so a draw is the same
whatever else is in the batch, on whichever device, and however often it is
repeated.
"""

import torch

SECOND_NUMBER = 1 << 62
"""A bit that no position has. Set, it makes the counter of another number of that position, should one be needed."""

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUND_COUNT = 10


def philox4x32(counter: tuple[torch.Tensor, ...], key: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Returns the four output words for each counter under its key.

    Args:
        counter: Four tensors of one shape, int64, values in [0, 2**32).
        key: Two tensors of that shape, int64, values in [0, 2**32).

    Returns:
        Four tensors of that shape, int64, values in [0, 2**32).
    """
    word0, word1, word2, word3 = counter
    key0, key1 = key
    for _ in range(_ROUND_COUNT):
        # An int64 product wraps, which leaves all 64 bits right; the masks undo the sign.
        product0 = word0 * _MULTIPLIERS[0]
        product1 = word2 * _MULTIPLIERS[1]
        word0, word1, word2, word3 = (
            ((product1 >> 32) & _WORD) ^ word1 ^ key0,
            product1 & _WORD,
            ((product0 >> 32) & _WORD) ^ word3 ^ key1,
            product0 & _WORD,
        )
        key0 = (key0 + _KEY_STEPS[0]) & _WORD
        key1 = (key1 + _KEY_STEPS[1]) & _WORD
    return word0, word1, word2, word3


def uniform(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Returns one number in [0, 1) per row, a multiple of 2**-53.

    53 bits, because a token with a probability below 2**-24 must stay possible.

    Args:
        seeds: [row] int64, the bits of the unsigned seed.
        positions: [row] int64, >= 0.

    Returns:
        [row] float64.
    """
    zero = torch.zeros_like(positions)
    counter = (positions & _WORD, (positions >> 32) & _WORD, zero, zero)
    word0, word1, _, _ = philox4x32(counter, (seeds & _WORD, (seeds >> 32) & _WORD))
    bits = ((word0 << 32) | word1) >> 11 & ((1 << 53) - 1)
    return bits.to(torch.float64) * 2.0**-53
