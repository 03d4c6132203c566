"""Names the full blocks of a sequence by their tokens and all that comes before."""

from array import array
from collections.abc import Sequence as Tokens
from hashlib import blake2b
from typing import Self

from headrace.contract.generation import ValidRequest

DIGEST_SIZE_BYTES = 16
"""Wide enough that two different prefixes never meet, by chance or by intent: a hit is not compared token by token."""


class DigestChain:
    """The digests of one sequence's full blocks, computed once, when first asked for.

    A digest covers the block's tokens and the digest of the block before it, so
    equal digests mean equal tokens from the very start. The first block builds
    on a root, which covers what else the KV depends on (the adapter) and who may
    share it (the salt).
    """

    __slots__ = ("_digests", "_root", "block_size")

    def __init__(self, *, root: bytes, block_size: int) -> None:
        self.block_size = block_size
        self._root = root
        self._digests: list[bytes] = []

    @classmethod
    def of(cls, request: ValidRequest, block_size: int) -> Self:
        """Returns the chain for a request's tokens, nothing computed yet."""
        salt = request.cache_salt.encode()
        # The length keeps ("ab", "c") apart from ("a", "bc").
        scope = len(salt).to_bytes(8, "little") + salt + request.adapter.encode()
        return cls(root=blake2b(scope, digest_size=DIGEST_SIZE_BYTES).digest(), block_size=block_size)

    def digest(self, index: int, token_ids: Tokens[int]) -> bytes:
        """Returns the digest of a block.

        `token_ids` are the sequence's tokens so far, the same in every call
        except for those that were appended; they must fill the block.
        """
        while len(self._digests) <= index:
            start = len(self._digests) * self.block_size
            tokens = array("I", token_ids[start : start + self.block_size])
            parent = self._digests[-1] if self._digests else self._root
            self._digests.append(blake2b(parent + tokens.tobytes(), digest_size=DIGEST_SIZE_BYTES).digest())
        return self._digests[index]
