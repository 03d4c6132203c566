"""Follows the rows that are held to a grammar, on a thread of its own: masks are made while the forward pass runs."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher
from llguidance.numpy import fill_next_token_bitmask
from numpy.typing import NDArray

from headrace.contract.vocabulary import Vocabulary
from headrace.shard.grammar_compiler import GrammarCompiler

Ints = NDArray[np.int64]
ThreadClock = Callable[[], float]

_BITS = 32

TOKEN_TIME_LIMIT_S = 0.05
"""Of a core, to follow one token or to make one mask. The batch waits that long at most for one row.

NOTE: the library's own count of work does not bound what following a token takes
in an ambiguous grammar, which grows with every token.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarMasks:
    """What the grammars of some rows allow as the next token."""

    indices: Ints
    """[constrained] into the places that were asked about, ascending."""
    words: NDArray[np.int32]
    """[constrained, word] a bit for each token id, the lowest first, set where the token is allowed."""
    may_go_on: NDArray[np.bool_]
    """[constrained] whether anything but the end of the completion is allowed."""
    failures: dict[int, str]
    """Why no mask could be made, by index into the places. Their masks allow everything."""


class _Row:
    """One row's matcher, until it fails."""

    __slots__ = ("_clock", "_matcher", "failure")

    def __init__(self, matcher: LLMatcher, clock: ThreadClock) -> None:
        self._matcher = matcher
        self._clock = clock
        self.failure = ""
        """Why it cannot go on; empty while it can."""
        self._check(clock())

    def follow(self, token_id: int) -> None:
        if not self.failure:
            began_s = self._clock()
            self._matcher.consume_token(token_id)
            self._check(began_s)

    def fill_mask(self, words: NDArray[np.int32], number: int) -> None:
        if not self.failure:
            began_s = self._clock()
            fill_next_token_bitmask(self._matcher, words, number)
            self._check(began_s)

    def _check(self, began_s: float) -> None:
        if self._matcher.is_error():
            self.failure = self._matcher.get_error().partition("\n")[0]
        elif self._clock() - began_s > TOKEN_TIME_LIMIT_S:
            self.failure = f"a token takes more than {TOKEN_TIME_LIMIT_S} s"


class GrammarRows:
    """The matchers of the rows, by place.

    Only the helper thread touches a matcher, in the order of the calls, so that
    nothing is locked: compiling, following drawn tokens and making masks all
    run beside the forward pass. The library lets go of the interpreter lock.
    """

    def __init__(self, vocabulary_size: int, *, clock: ThreadClock = time.thread_time) -> None:
        """Takes the number of token ids, and a clock of the time that a thread computes, in seconds."""
        self._clock = clock
        self._vocabulary_size = vocabulary_size
        self._compiler: GrammarCompiler | None = None
        self._end_token_ids: Ints = np.empty(0, dtype=np.int64)
        self._matchers: dict[int, Future[_Row]] = {}
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        # Started now: a thread is bound to the processors of the one that starts it, and the engine's computes.
        self._helper.submit(int)
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
            self._matchers[place] = self._helper.submit(_start, self._compiler, grammar, tuple(generated), self._clock)

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

    def _make_masks(self, found: list[tuple[int, Future[_Row]]]) -> GrammarMasks:
        words = np.full((len(found), -(-self._vocabulary_size // _BITS)), -1, dtype=np.int32)
        failures: dict[int, str] = {}
        for number, (index, future) in enumerate(found):
            row = future.result()
            row.fill_mask(words, number)
            if row.failure:
                words[number] = -1
                failures[index] = row.failure
        going_on = words.copy()
        end_words, shifts = self._end_token_ids // _BITS, (self._end_token_ids % _BITS).astype(np.uint32)
        for word, shift in zip(end_words.tolist(), shifts.tolist(), strict=True):
            going_on.view(np.uint32)[:, word] &= np.uint32(~(1 << shift) & 0xFFFFFFFF)
        return GrammarMasks(
            indices=np.array([index for index, _ in found], dtype=np.int64),
            words=words,
            may_go_on=np.asarray(going_on.any(axis=1)),
            failures=failures,
        )


def _start(compiler: GrammarCompiler, grammar: str, generated: tuple[int, ...], clock: ThreadClock) -> _Row:
    row = _Row(compiler.matcher(grammar), clock)
    for token_id in generated:
        row.follow(token_id)
    return row


def _follow(drawn: list[tuple[Future[_Row], int]]) -> None:
    for future, token_id in drawn:
        future.result().follow(token_id)
