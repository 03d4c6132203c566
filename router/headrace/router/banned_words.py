"""Turns words that must not be generated into an automaton over token ids, however a tokenizer might cut them."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from operator import itemgetter

from headrace.contract.sampling import BannedText
from headrace.router.tokenizer import Tokenizer


class BannedWords:
    """Compiles the banned words of requests for one model. What it has to know of the vocabulary waits for the first.

    Threads may share it; two that come first at once do the same work twice.
    """

    __slots__ = ("_compilers", "_tokenizer", "_vocabulary_size")

    def __init__(self, tokenizer: Tokenizer, vocabulary_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size
        self._compilers: dict[bool, BannedWordCompiler] = {}

    def compile(self, words: Iterable[str], *, include_special_tokens: bool) -> BannedText:
        """Returns the automaton that keeps every word, none of them empty, out of a completion.

        Takes milliseconds for each word, and a tenth of a second more for the first.
        """
        compiler = self._compilers.get(include_special_tokens)
        if compiler is None:
            table = self._tokenizer.token_bytes(include_special_tokens=include_special_tokens)
            compiler = self._compilers[include_special_tokens] = BannedWordCompiler(table, self._vocabulary_size)
        return compiler.compile(words)


class BannedWordCompiler:
    """Knows the bytes of a vocabulary. Immutable.

    A word is banned as text: the bytes of the completion never contain it, in
    whatever tokens they come. NOTE: to ban the tokens that a tokenizer makes of
    the word would be simpler, and a model that knows a second spelling of it
    would write that.
    """

    __slots__ = ("_backward", "_by_bytes", "_ends", "_forward", "_joined", "_neutral_ids")

    def __init__(self, table: Sequence[bytes], vocabulary_size: int) -> None:
        """Takes the bytes that each token adds to a completion, by id, and how many ids the model has."""
        table = table[:vocabulary_size]
        by_bytes: dict[bytes, list[int]] = {}
        for token_id, data in enumerate(table):
            by_bytes.setdefault(data, []).append(token_id)
        self._neutral_ids = (*by_bytes.pop(b"", ()), *range(len(table), vocabulary_size))
        self._joined = b"".join(table)
        self._ends = list(accumulate(map(len, table)))
        self._by_bytes = by_bytes
        self._forward = _Prefixes((data, token_id) for data, ids in by_bytes.items() for token_id in ids)
        self._backward = _Prefixes((data[::-1], token_id) for data, ids in by_bytes.items() for token_id in ids)

    def compile(self, words: Iterable[str]) -> BannedText:
        """Returns the automaton that keeps every word, none of them empty, out of a completion."""
        automaton = _Automaton()
        for word in dict.fromkeys(words):
            self._add(automaton, word.encode())
        return automaton.build(self._neutral_ids)

    def _add(self, automaton: "_Automaton", word: bytes) -> None:
        """Adds a word. Its state k stands for a completion that ends with the first k bytes of it, 0 < k < length.

        An occurrence lies within one token, or it begins at the end of a token, goes
        on with tokens that it contains, and ends at the beginning of one.
        """
        automaton.barred.update(self._containing(word))
        first_state = automaton.add_states(len(word) - 1) - 1
        for count in range(1, len(word)):
            state, rest = first_state + count, word[count:]
            automaton.starts += ((token_id, state) for token_id in self._backward.find(word[count - 1 :: -1]))
            automaton.ends += ((state, token_id) for token_id in self._forward.find(rest))
            for length in range(1, len(rest)):
                for token_id in self._by_bytes.get(rest[:length], ()):
                    automaton.moves.append((state, token_id, state + length))

    def _containing(self, word: bytes) -> Iterator[int]:
        # One search in all bytes is a hundred times as fast as one in each token.
        position = self._joined.find(word)
        while position >= 0:
            token_id = bisect_right(self._ends, position)
            if position + len(word) <= self._ends[token_id]:
                yield token_id
            position = self._joined.find(word, position + 1)


class _Prefixes:
    """Finds the tokens that begin with some bytes."""

    __slots__ = ("_keys", "_token_ids")

    def __init__(self, tokens: Iterable[tuple[bytes, int]]) -> None:
        ordered = sorted(tokens)
        self._keys = [data for data, _ in ordered]
        self._token_ids = [token_id for _, token_id in ordered]

    def find(self, prefix: bytes) -> list[int]:
        first = bisect_left(self._keys, prefix)
        after = _successor(prefix)
        return self._token_ids[first : len(self._keys) if after is None else bisect_left(self._keys, after, first)]


class _Automaton:
    """The columns of a BannedText in the making."""

    __slots__ = ("barred", "ends", "moves", "starts", "state_count")

    def __init__(self) -> None:
        self.state_count = 0
        self.barred: set[int] = set()
        self.starts: list[tuple[int, int]] = []
        self.moves: list[tuple[int, int, int]] = []
        self.ends: list[tuple[int, int]] = []

    def add_states(self, count: int) -> int:
        """Returns the first of `count` new states."""
        first = self.state_count
        self.state_count += count
        return first

    def build(self, neutral_ids: tuple[int, ...]) -> BannedText:
        starts, ends = sorted(self.starts), sorted(self.ends)
        return BannedText(
            state_count=self.state_count,
            token_ids=tuple(sorted(self.barred)),
            neutral_token_ids=neutral_ids,
            start_token_ids=tuple(map(itemgetter(0), starts)),
            start_states=tuple(map(itemgetter(1), starts)),
            move_states=tuple(map(itemgetter(0), self.moves)),
            move_token_ids=tuple(map(itemgetter(1), self.moves)),
            move_next_states=tuple(map(itemgetter(2), self.moves)),
            end_states=tuple(map(itemgetter(0), ends)),
            end_token_ids=tuple(map(itemgetter(1), ends)),
        )


def _successor(prefix: bytes) -> bytes | None:
    """Returns the first bytes after all that begin with the prefix; None if there are none."""
    stem = prefix.rstrip(b"\xff")
    return bytes((*stem[:-1], stem[-1] + 1)) if stem else None
