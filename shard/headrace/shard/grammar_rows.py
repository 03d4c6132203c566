"""Follows the rows that are held to a grammar, on a thread of its own: masks are made while the forward pass runs."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher
from llguidance.numpy import fill_next_token_bitmask
from numpy.typing import NDArray

from headrace.contract.vocabulary import Vocabulary
from headrace.shard.grammar_compiler import GrammarCompiler

Ints = NDArray[np.int64]

_BITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarMasks:
    """What the grammars of some rows allow as the next token."""

    indices: Ints
    """[constrained] into the places that were asked about, ascending."""
    bits: NDArray[np.int32]
    """[constrained, word] a bit for each token id, the lowest first, set where the token is allowed."""
    may_go_on: NDArray[np.bool_]
    """[constrained] whether anything but the end of the completion is allowed."""
    failures: dict[int, str]
    """Why no mask could be made, by index into the places. Their bits are all set."""

    def allowed(self, vocabulary_size: int) -> NDArray[np.bool_]:
        """Returns [constrained, vocabulary] whether a token is allowed."""
        unpacked = np.unpackbits(self.bits.view(np.uint8), axis=1, count=vocabulary_size, bitorder="little")
        return unpacked.view(np.bool_)


class GrammarRows:
    """The matchers of the rows, by place.

    Only the helper thread touches a matcher, in the order of the calls, so that
    nothing is locked: compiling, following drawn tokens and making masks all
    run beside the forward pass. The library lets go of the interpreter lock.
    """

    def __init__(self, vocabulary_size: int) -> None:
        self._vocabulary_size = vocabulary_size
        self._compiler: GrammarCompiler | None = None
        self._end_token_ids: Ints = np.empty(0, dtype=np.int64)
        self._matchers: dict[int, Future[LLMatcher]] = {}
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._masks: Future[GrammarMasks] | None = None

    def load(self, vocabulary: Vocabulary) -> None:
        """Takes the model's tokens; grammars are compiled over them from now on.

        Raises:
            ValueError: no token ends a completion.
        """
        self._compiler = GrammarCompiler(vocabulary, self._vocabulary_size)
        ends = [token_id for token_id in vocabulary.end_of_sequence_token_ids if token_id < self._vocabulary_size]
        self._end_token_ids = np.array(ends, dtype=np.int64)

    @property
    def is_loaded(self) -> bool:
        """Whether the vocabulary is known."""
        return self._compiler is not None

    def fill(self, place: int, grammar: str, generated: Sequence[int]) -> None:
        """Holds the row at a place to a grammar, after the tokens that were generated already; "" frees it."""
        self._matchers.pop(place, None)
        if grammar:
            assert self._compiler is not None, "an engine refuses grammars until it knows its vocabulary"
            self._matchers[place] = self._helper.submit(_start, self._compiler, grammar, tuple(generated))

    def begin(self, places: Ints) -> None:
        """Starts to make the masks of the rows that sample in this step."""
        self._masks = None
        if not self._matchers:
            return
        found = [
            (index, self._matchers[place]) for index, place in enumerate(places.tolist()) if place in self._matchers
        ]
        if found:
            self._masks = self._helper.submit(self._make_masks, found)

    def masks(self) -> GrammarMasks | None:
        """Waits for the masks of the rows that `begin` was told of; None if no grammar holds any."""
        return None if self._masks is None else self._masks.result()

    def append_tokens(self, places: Ints, token_ids: Ints) -> None:
        """Takes one more drawn token at each place."""
        if not self._matchers:
            return
        drawn = [
            (self._matchers[place], token_id)
            for place, token_id in zip(places.tolist(), token_ids.tolist(), strict=True)
            if place in self._matchers
        ]
        if drawn:
            self._helper.submit(_follow, drawn)

    def _make_masks(self, found: list[tuple[int, Future[LLMatcher]]]) -> GrammarMasks:
        bits = np.full((len(found), -(-self._vocabulary_size // _BITS)), -1, dtype=np.int32)
        failures: dict[int, str] = {}
        for number, (index, future) in enumerate(found):
            matcher = future.result()
            if not matcher.is_error():
                fill_next_token_bitmask(matcher, bits, number)
            if matcher.is_error():
                bits[number] = -1
                failures[index] = matcher.get_error().partition("\n")[0]
        going_on = bits.copy()
        words, shifts = self._end_token_ids // _BITS, (self._end_token_ids % _BITS).astype(np.uint32)
        for word, shift in zip(words.tolist(), shifts.tolist(), strict=True):
            going_on.view(np.uint32)[:, word] &= np.uint32(~(1 << shift) & 0xFFFFFFFF)
        return GrammarMasks(
            indices=np.array([index for index, _ in found], dtype=np.int64),
            bits=bits,
            may_go_on=np.asarray(going_on.any(axis=1)),
            failures=failures,
        )


def _start(compiler: GrammarCompiler, grammar: str, generated: tuple[int, ...]) -> LLMatcher:
    matcher = compiler.matcher(grammar)
    matcher.consume_tokens(list(generated))
    return matcher


def _follow(drawn: list[tuple[Future[LLMatcher], int]]) -> None:
    for future, token_id in drawn:
        # A matcher that does not take the token is in its error state, which the next mask reports.
        future.result().consume_token(token_id)
