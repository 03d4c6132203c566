"""The tokens that a watermark favours, for whole vocabularies at once and alike on every device."""

import torch

from headrace.kernels import philox

_LANE_COUNT = 8
_DOMAIN = 1
_WORD = 0xFFFFFFFF


def green_mask(
    keys: torch.Tensor, previous_token_ids: torch.Tensor, thresholds: torch.Tensor, vocabulary_size: int
) -> torch.Tensor:
    """Returns which tokens are on the green list of each row.

    A token is green if its lane of 16 bits is below the threshold: eight tokens
    share the four words of Philox4x32-10 whose counter is (token id // 8,
    previous token, 0, 1) and whose key is the row's.

    Args:
        keys: [row] int64, the bits of the unsigned key.
        previous_token_ids: [row] int64.
        thresholds: [row] int64, in (0, 2**16).
        vocabulary_size: Number of token ids.

    Returns:
        [row, vocabulary] bool.
    """
    row_count, group_count = len(keys), -(-vocabulary_size // _LANE_COUNT)
    shape = (row_count, group_count)
    groups = torch.arange(group_count, device=keys.device)[None].expand(shape)
    zeros = torch.zeros((), dtype=torch.int64, device=keys.device).expand(shape)
    words = philox.philox4x32(
        (groups, previous_token_ids[:, None].expand(shape), zeros, zeros + _DOMAIN),
        ((keys & _WORD)[:, None].expand(shape), (keys >> 32 & _WORD)[:, None].expand(shape)),
    )
    lanes = torch.stack([half for word in words for half in (word & 0xFFFF, word >> 16)], dim=-1)
    return (lanes < thresholds[:, None, None]).view(row_count, -1)[:, :vocabulary_size]
