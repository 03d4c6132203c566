"""Which tokens a watermark favours: what whoever writes it and whoever looks for it have to agree on.

Kirchenbauer, Geiping, Wen, Katz, Miers and Goldstein, "A Watermark for Large
Language Models" (ICML 2023): a secret key and the token before divide the
vocabulary into a green and a red list, and green tokens are made likelier.

NOTE: the paper shuffles the vocabulary with a generator that the pair seeds. Here
each token is green by itself, with probability gamma, by one of eight lanes of a
counter-based random number. So the list is the same on every device and for
every size of the vocabulary, and to look at one token costs no more than one
number. The statistics of the test stay as they are.
"""

import hashlib

from headrace.contract.errors import StartupError

LANE_COUNT = 8
"""Tokens that share a random number of 128 bits."""
LANE_VALUE_COUNT = 1 << 16
"""Values of a lane, hence steps of gamma."""
DOMAIN = 1
"""Last word of the counter, so that no draw of a token sees the same numbers."""

_WORD = 0xFFFFFFFF
_NAME_CHARACTERS = 64
_SECRET_CHARACTERS = 16


def parse_watermark_keys(text: str) -> dict[str, int]:
    """Reads named secrets: on each line a name and a secret, which is the rest of it. `#` begins a comment.

    Returns:
        The keys by their names, in order.

    Raises:
        StartupError: a line is not of this form, a secret is short enough to guess, or a name comes twice. The
            message has no secret in it.
    """
    keys: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name, _, secret = line.strip().partition(" ")
        secret = secret.strip()
        if not name or name.startswith("#"):
            continue
        if len(secret) < _SECRET_CHARACTERS:
            raise StartupError(f"watermark keys, line {number}: a secret has at least {_SECRET_CHARACTERS} characters")
        if len(name) > _NAME_CHARACTERS or name in keys:
            raise StartupError(
                f"watermark keys, line {number}: a name has at most {_NAME_CHARACTERS} characters and comes once"
            )
        keys[name] = key_of(secret)
    return keys


def key_of(secret: str) -> int:
    """Returns the key that a secret stands for, in [1, 2**64)."""
    return int.from_bytes(hashlib.sha256(secret.encode()).digest()[:8], "little") or 1


def threshold_of(gamma: float) -> int:
    """Returns how many values of a lane are green, at least one and not all; gamma is in (0, 1)."""
    return min(max(round(gamma * LANE_VALUE_COUNT), 1), LANE_VALUE_COUNT - 1)


def is_green(token_id: int, *, previous_token_id: int, key: int, threshold: int) -> bool:
    """Returns whether a token is on the green list after another one.

    Args:
        token_id: The token.
        previous_token_id: The one before it.
        key: From `key_of`.
        threshold: From `threshold_of`.
    """
    words = philox4x32((token_id // LANE_COUNT, previous_token_id, 0, DOMAIN), (key & _WORD, key >> 32))
    lane = token_id % LANE_COUNT
    return words[lane // 2] >> 16 * (lane % 2) & (LANE_VALUE_COUNT - 1) < threshold


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns a random number as four words of 32 bits: Philox4x32-10 (Salmon et al., SC 2011)."""
    word0, word1, word2, word3 = counter
    key0, key1 = key
    for _ in range(10):
        product0, product1 = word0 * 0xD2511F53, word2 * 0xCD9E8D57
        word0, word1, word2, word3 = (
            (product1 >> 32) ^ word1 ^ key0,
            product1 & _WORD,
            (product0 >> 32) ^ word3 ^ key1,
            product0 & _WORD,
        )
        key0, key1 = (key0 + 0x9E3779B9) & _WORD, (key1 + 0xBB67AE85) & _WORD
    return word0, word1, word2, word3
