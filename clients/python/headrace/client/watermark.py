"""Tells whether a text carries a watermark, from its tokens and the key alone. Needs no model and no server."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from headrace.contract.watermark import LANE_VALUE_COUNT, is_green, key_of, threshold_of


@dataclass(frozen=True, slots=True, kw_only=True)
class WatermarkEvidence:
    """What the tokens of a text say for a watermark."""

    token_count: int
    """Tokens that were judged: each with the one before it, and each such pair once."""
    green_count: int
    """Those that the watermark favours."""
    z_score: float
    """Standard deviations by which that is more than without a watermark. Above 4 is strong evidence."""
    p_value: float
    """Probability that a text without the watermark has as many."""


def detect_watermark(token_ids: Sequence[int], secret: str, *, gamma: float = 0.25) -> WatermarkEvidence:
    """Tests a text for the watermark of one key.

    A pair of tokens that comes again tells nothing new: a text that repeats
    itself would seem marked, or unmarked, with more certainty than there is.

    Args:
        token_ids: The text in the model's tokens. The first one only says what comes before the second.
        secret: Of the key.
        gamma: As when the text was made.

    Returns:
        The evidence; a text of fewer than two tokens is none.
    """
    return detect_with_key(token_ids, key_of(secret), gamma=gamma)


def detect_with_key(token_ids: Sequence[int], key: int, *, gamma: float = 0.25) -> WatermarkEvidence:
    """Tests as `detect_watermark`, with the key that a secret stands for.

    Raises:
        ValueError: gamma is not in (0, 1).
    """
    if not 0 < gamma < 1:
        raise ValueError(f"gamma must be in (0, 1), is {gamma}")
    threshold = threshold_of(gamma)
    pairs = dict.fromkeys(pairwise(token_ids))
    count = len(pairs)
    green_count = sum(
        is_green(token_id, previous_token_id=previous, key=key, threshold=threshold) for previous, token_id in pairs
    )
    if count == 0:
        return WatermarkEvidence(token_count=0, green_count=0, z_score=0.0, p_value=1.0)
    share = threshold / LANE_VALUE_COUNT
    z_score = (green_count - share * count) / math.sqrt(count * share * (1 - share))
    return WatermarkEvidence(
        token_count=count,
        green_count=green_count,
        z_score=z_score,
        p_value=0.5 * math.erfc(z_score / math.sqrt(2)),
    )
