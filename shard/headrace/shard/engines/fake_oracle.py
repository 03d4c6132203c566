"""The tokens that the fake engine has to produce, from the prompt alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headrace.contract.pooling import Pooling, PoolingOptions
from headrace.contract.sampling import RowStopRules, SamplingParams
from headrace.contract.step import RowEnd
from headrace.shard.pooler import make_vector

_WORD = (1 << 64) - 1
MULTIPLIER = 0x5851F42D4C957F2D
"""Base of the polynomial hash; odd, so that every power differs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeModel:
    """What decides a token, besides the tokens before it."""

    vocabulary_size: int = 49152
    """As SmolLM2's, so that its tokenizer can turn the tokens into text."""
    first_drawn_token_id: int = 32
    """Tokens below are never drawn: that is where SmolLM2 keeps its special tokens."""
    end_of_sequence_token_id: int = 2
    end_of_sequence_one_in: int = 0
    """One draw in this many is the end of the sequence; 0 means none."""

    def draw(self, digest: int, *, position: int, seed: int, barred: frozenset[int] = frozenset()) -> int:
        """Returns the token at a position.

        Args:
            digest: `digest_tokens` of all tokens before it.
            position: Its index in the sequence.
            seed: 0 when the draw is greedy.
            barred: Tokens that may not be drawn; fewer than the vocabulary has.
        """
        state = mix(digest ^ mix(seed + position * MULTIPLIER))
        while (token_id := self._token(state)) in barred:
            state = mix(state + 1)
        return token_id

    def _token(self, state: int) -> int:
        if self.end_of_sequence_one_in and (state >> 40) % self.end_of_sequence_one_in == 0:
            return self.end_of_sequence_token_id
        return self.first_drawn_token_id + state % (self.vocabulary_size - self.first_drawn_token_id)


def mix(value: int) -> int:
    """Scrambles 64 bits: the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _WORD
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _WORD
    return value ^ (value >> 31)


def drawn_share(token_id: int) -> float:
    """Returns the probability that the fake engine reports of a token that it drew: 1/2 to 1/8."""
    return 1 / (2 + token_id % 7)


def adapter_offset(digest: str) -> int:
    """Returns the number that the fake engine adds to the tokens of a row with an adapter, as it keeps them."""
    return mix(int(digest, 16) & _WORD) >> 16 if digest else 0


def digest_tokens(token_ids: Sequence[int], adapter: str = "") -> int:
    """Returns a hash of tokens, their order and the digest of their adapter.

    It is the sum of (id + offset + 1) * MULTIPLIER**index, modulo 2**64.
    """
    start = 1 + adapter_offset(adapter)
    return sum((token_id + start) * pow(MULTIPLIER, index, 1 << 64) for index, token_id in enumerate(token_ids)) & _WORD


def hidden_state(digest: int, size: int) -> list[float]:
    """Returns the hidden state of a token, from the `digest_tokens` of all tokens up to it.

    Its numbers are whole multiples of 2**-19 in [-1, 1), so that sums of them are
    exact in any order.
    """
    return [(mix(digest + dimension) >> 44) / 2**19 - 1 for dimension in range(size)]


def expected_vector(prompt: Sequence[int], options: PoolingOptions, *, hidden_size: int) -> bytes:
    """Returns the vector that a fake engine makes of a prompt."""
    firsts = range(1, len(prompt) + 1) if options.pooling is Pooling.MEAN else (len(prompt),)
    states = [hidden_state(digest_tokens(prompt[:end]), hidden_size) for end in firsts]
    return make_vector(np.array(states).mean(axis=0), options)


def expected_tokens(
    prompt: Sequence[int],
    count: int,
    *,
    model: FakeModel | None = None,
    sampling: SamplingParams | None = None,
    stopping: RowStopRules | None = None,
    adapter: str = "",
) -> tuple[int, ...]:
    """Returns what a fake engine generates after a prompt, an ending token included.

    Args:
        prompt: The prompt's token ids.
        count: Most tokens to generate.
        model: As the engine's options; the defaults if None.
        sampling: Only whether it is greedy, and the seed if it is not. None is greedy.
        stopping: When the sequence ends by itself; None never.
        adapter: The digest of its adapter; empty for none.
    """
    return expected_completion(prompt, count, model=model, sampling=sampling, stopping=stopping, adapter=adapter)[0]


def expected_completion(
    prompt: Sequence[int],
    count: int,
    *,
    model: FakeModel | None = None,
    sampling: SamplingParams | None = None,
    stopping: RowStopRules | None = None,
    adapter: str = "",
) -> tuple[tuple[int, ...], RowEnd | None]:
    """Returns as `expected_tokens`, and why the sequence ended, None if it goes on."""
    model = model or FakeModel()
    stopping = stopping or RowStopRules(token_limit=len(prompt) + count + 1)
    seed = 0 if sampling is None or sampling.is_greedy else sampling.seed
    endings = dict.fromkeys(stopping.stop_token_ids, RowEnd.STOP_TOKEN)
    endings |= dict.fromkeys(stopping.end_of_sequence_token_ids, RowEnd.END_OF_SEQUENCE)
    generated: list[int] = []
    start = 1 + adapter_offset(adapter)
    digest, power = digest_tokens(prompt, adapter), pow(MULTIPLIER, len(prompt), 1 << 64)
    while len(generated) < count:
        barred = frozenset(endings) if len(generated) < stopping.min_new_token_count else frozenset[int]()
        position = len(prompt) + len(generated)
        token_id = model.draw(digest, position=position, seed=seed, barred=barred)
        generated.append(token_id)
        if token_id in endings:
            return tuple(generated), endings[token_id]
        if position + 1 >= stopping.token_limit:
            return tuple(generated), RowEnd.TOKEN_LIMIT
        digest, power = (digest + (token_id + start) * power) & _WORD, (power * MULTIPLIER) & _WORD
    return tuple(generated), None
