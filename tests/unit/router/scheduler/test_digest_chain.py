import pytest
from scheduler_rig import make_request

from headrace.router.digest_chain import DIGEST_SIZE_BYTES, DigestChain


def digests(tokens: list[int], *, block_size: int = 2, salt: str = "", adapter: str = "") -> list[bytes]:
    chain = DigestChain.of(make_request(tokens, cache_salt=salt, adapter=adapter), block_size)
    return [chain.digest(index, tokens) for index in range(len(tokens) // block_size)]


def test_equal_prefixes_have_equal_digests() -> None:
    assert digests([1, 2, 3, 4, 5, 6])[:2] == digests([1, 2, 3, 4, 9, 9])[:2]
    assert all(len(digest) == DIGEST_SIZE_BYTES for digest in digests([1, 2, 3, 4]))


def test_a_digest_covers_everything_before_its_block() -> None:
    assert digests([1, 2, 3, 4])[1] != digests([1, 9, 3, 4])[1]


def test_a_digest_covers_every_token_and_their_order() -> None:
    assert len({tuple(digests(tokens)) for tokens in ([1, 2], [2, 1], [1, 3], [258, 0], [1, 2**32 - 1])}) == 5


@pytest.mark.parametrize(
    "scope", [{"salt": "one"}, {"salt": "two"}, {"adapter": "one"}, {"salt": "on", "adapter": "e"}, {"salt": "é"}]
)
def test_every_scope_has_its_own_digests(scope: dict[str, str]) -> None:
    others = [{}, {"salt": "one"}, {"salt": "two"}, {"adapter": "one"}, {"salt": "on", "adapter": "e"}, {"salt": "é"}]
    others.remove(scope)
    assert digests([1, 2], **scope) == digests([1, 2], **scope)
    assert all(digests([1, 2], **scope) != digests([1, 2], **other) for other in others)


def test_grows_with_the_sequence() -> None:
    tokens = [1, 2, 3]
    chain = DigestChain.of(make_request(tokens), 2)
    first = chain.digest(0, tokens)
    tokens += [4, 5]
    assert [chain.digest(0, tokens), chain.digest(1, tokens)] == digests([1, 2, 3, 4])
    assert chain.digest(0, tokens) == first
