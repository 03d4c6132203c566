"""A banned word never appears in a completion, in whatever tokens it comes, and nothing else is barred."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.contract.sampling import BannedText
from headrace.router.banned_words import BannedWordCompiler, BannedWords
from headrace.router.tokenizer import Tokenizer
from headrace.shard.banned_text import BannedTextTracker

PIECES = st.text("abé", max_size=3).map(str.encode)
# Halves of a character, and bytes at the end of their range.
BYTES = PIECES | st.sampled_from((b"\xc3", b"\xa9", b"\xff", b"a\xff", b"\xc3\xa9a\xc3"))
TABLES = st.lists(BYTES, min_size=1, max_size=25)
WORDS = st.lists(st.text("abé", min_size=1, max_size=4), min_size=1, max_size=3)
CHOICES = st.lists(st.integers(0, 1000), max_size=20)


@settings(max_examples=300, deadline=None)
@given(
    table=TABLES, words=WORDS, choices=st.lists(st.integers(0, 1000), max_size=20), replayed_count=st.integers(0, 20)
)
def test_exactly_what_would_complete_a_word_is_barred(
    table: list[bytes], words: list[str], choices: list[int], replayed_count: int
) -> None:
    vocabulary_size = len(table) + 2  # a model may have more ids than its tokenizer, and these are no text
    automaton = BannedWordCompiler(table, vocabulary_size).compile(words)
    tracker = BannedTextTracker(automaton, ())
    text = b""
    generated: list[int] = []
    for choice in choices:
        barred = set(tracker.barred_token_ids.tolist())
        assert barred == {
            token_id for token_id, data in enumerate(table) if any(word.encode() in text + data for word in words)
        }
        allowed = [token_id for token_id in range(vocabulary_size) if token_id not in barred]
        token_id = allowed[choice % len(allowed)]
        generated.append(token_id)
        text += table[token_id] if token_id < len(table) else b""
        tracker.push(token_id)
        if len(generated) == replayed_count:
            tracker = BannedTextTracker(automaton, generated)


def spellings(tokenizer: Tokenizer, text: bytes) -> list[list[int]]:
    """Every way to spell a text in tokens of the vocabulary."""
    table = tokenizer.token_bytes(include_special_tokens=False)
    by_bytes: dict[bytes, list[int]] = {}
    for token_id, data in enumerate(table):
        by_bytes.setdefault(data, []).append(token_id)
    found: list[list[list[int]]] = [[[]]]
    for end in range(1, len(text) + 1):
        found.append(
            [
                [*head, token_id]
                for start in range(end)
                for token_id in by_bytes.get(text[start:end], ())
                for head in found[start]
            ]
        )
    return found[-1]


@pytest.mark.parametrize(("word", "text"), [("river", " The river."), ("naïve", "a naïve"), (" dam", "no dam")])
def test_every_spelling_of_a_word_is_barred(example_tokenizer: Tokenizer, word: str, text: str) -> None:
    automaton = BannedWords(example_tokenizer, example_tokenizer.vocabulary_size).compile(
        (word,), include_special_tokens=False
    )
    ways = spellings(example_tokenizer, text.encode())
    assert len(ways) > 10
    for token_ids in ways:
        tracker = BannedTextTracker(automaton, ())
        barred_at = None
        for place, token_id in enumerate(token_ids):
            if token_id in set(tracker.barred_token_ids.tolist()):
                barred_at = place
                break
            tracker.push(token_id)
        assert barred_at is not None
        before = b"".join(example_tokenizer.token_bytes(include_special_tokens=False)[i] for i in token_ids[:barred_at])
        assert word.encode() not in before


def test_special_tokens_between_do_not_hide_a_word(example_tokenizer: Tokenizer) -> None:
    """They are no part of the text, unless it was asked to include them."""
    (river,) = example_tokenizer.encode("ri", add_special_tokens=False)
    special = min(example_tokenizer.special_token_ids)
    words = BannedWords(example_tokenizer, example_tokenizer.vocabulary_size)
    (ver,) = example_tokenizer.encode("ver", add_special_tokens=False)

    def is_barred(automaton: BannedText) -> bool:
        return ver in BannedTextTracker(automaton, (river, special)).barred_token_ids

    assert is_barred(words.compile(("river",), include_special_tokens=False))
    assert not is_barred(words.compile(("river",), include_special_tokens=True))
