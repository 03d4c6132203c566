"""Rows held to a grammar: what is allowed next, whatever was drawn before and by whatever way it came."""

import itertools
import random
import re

import numpy as np
import pytest
from llguidance import LLMatcher
from numpy.typing import NDArray

from headrace.contract.vocabulary import Vocabulary
from headrace.shard.grammar_rows import TOKEN_TIME_LIMIT_S, GrammarMasks, GrammarRows

END = 256
VOCABULARY = Vocabulary(
    token_bytes=(*(bytes([byte]) for byte in range(256)), b"<end>", b"ab", b"ba", b""),
    special_token_ids=(END,),
    end_of_sequence_token_ids=(END,),
)
SIZE = 320
"""More than the vocabulary has, as with a padded embedding."""


def regex(pattern: str) -> str:
    return LLMatcher.grammar_from_regex(pattern)


@pytest.fixture
def rows() -> GrammarRows:
    made = GrammarRows(SIZE)
    made.load(VOCABULARY)
    return made


def masks_of(rows: GrammarRows, *places: int) -> GrammarMasks:
    rows.begin(np.array(places))
    masks = rows.masks()
    assert masks is not None
    return masks


def token_ids_of(words: NDArray[np.int32]) -> set[int]:
    bits = np.unpackbits(words.view(np.uint8), count=SIZE, bitorder="little")
    return set(bits.nonzero()[0].tolist())


def allowed_of(rows: GrammarRows, place: int) -> set[int]:
    return token_ids_of(masks_of(rows, place).words[0])


def push(rows: GrammarRows, place: int, token_id: int) -> None:
    rows.append_tokens(np.array([place]), np.array([token_id]))


def test_only_what_leads_into_the_language_is_allowed(rows: GrammarRows) -> None:
    rows.fill(3, regex("(ab)+"), ())
    assert allowed_of(rows, 3) == {ord("a"), 257}
    push(rows, 3, ord("a"))
    assert allowed_of(rows, 3) == {ord("b"), 258}
    push(rows, 3, 258)
    push(rows, 3, ord("b"))
    assert allowed_of(rows, 3) == {ord("a"), 257, END}


def test_a_random_walk_belongs_to_the_language_and_can_be_taken_up_anywhere(rows: GrammarRows) -> None:
    pattern, numbers = r"(ab){1,9}-[0-9]{2}(ba|c)*", random.Random(4)
    for _ in range(20):
        rows.fill(0, regex(pattern), ())
        drawn: list[int] = []
        while not drawn or drawn[-1] != END:
            allowed = allowed_of(rows, 0)
            rows.fill(1, regex(pattern), tuple(drawn))
            assert allowed_of(rows, 1) == allowed, "rebuilt from its tokens, a row goes on as it would have"
            drawn.append(numbers.choice(sorted(allowed)))
            push(rows, 0, drawn[-1])
        text = b"".join(VOCABULARY.token_bytes[token_id] for token_id in drawn[:-1])
        assert re.fullmatch(pattern, text.decode())


def test_rows_do_not_meet(rows: GrammarRows) -> None:
    rows.fill(0, regex("a"), ())
    rows.fill(2, regex("a"), ())
    push(rows, 0, ord("a"))
    masks = masks_of(rows, 2, 1, 0)
    assert masks.indices.tolist() == [0, 2]
    assert [token_ids_of(words) for words in masks.words] == [{ord("a")}, {END}]
    assert masks.may_go_on.tolist() == [True, False]


def test_a_row_without_a_grammar_asks_for_nothing(rows: GrammarRows) -> None:
    rows.fill(0, regex("a"), ())
    rows.fill(0, "", ())
    rows.begin(np.array([0]))
    assert rows.masks() is None


def test_too_much_work_fails_one_row_alone() -> None:
    slowness = [0.0]
    times = itertools.count()
    rows = GrammarRows(SIZE, clock=lambda: next(times) * slowness[0])
    rows.load(VOCABULARY)
    rows.fill(0, regex("a+"), ())
    assert masks_of(rows, 0).failures == {}
    slowness[0] = 2 * TOKEN_TIME_LIMIT_S
    push(rows, 0, ord("a"))
    assert "more than" in masks_of(rows, 0).failures[0]
    slowness[0] = 0.0
    rows.fill(1, regex("b+"), ())
    masks = masks_of(rows, 0, 1)
    assert list(masks.failures) == [0], "what has failed once is not taken up again"
    assert token_ids_of(masks.words[1]) == {ord("b")}


def test_a_token_that_is_not_allowed_fails_the_row(rows: GrammarRows) -> None:
    rows.fill(0, regex("a+"), (ord("b"),))
    assert masks_of(rows, 0).failures[0]


def test_a_vocabulary_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="ends a completion"):
        GrammarRows(8).load(Vocabulary(token_bytes=(b"a",), special_token_ids=(), end_of_sequence_token_ids=(9,)))


def free_of(rows: GrammarRows, *places: int) -> list[int]:
    rows.begin(np.array(places))
    return rows.free_rows().tolist()


def allows(rows: GrammarRows, index: int, token_id: int) -> bool:
    is_allowed, failures = rows.allow(np.array([index]), np.array([token_id]))
    assert is_allowed[0] or not failures
    return bool(is_allowed[0])


def test_a_token_is_allowed_where_its_bit_is_set(rows: GrammarRows) -> None:
    """Each of them: letters, special and empty ones, and ids that no token has."""
    numbers = random.Random(5)
    for grammar in (regex(r"(ab){1,9}-[0-9]{2}(ba|c)*"), 'start: w+ "."\nw: A B | B\nA: /a+/\nB: /b/'):
        for _ in range(5):
            rows.fill(0, grammar, (), may_draw_freely=True)
            drawn = -1
            while drawn != END:
                assert free_of(rows, 0) == [0]
                assert rows.masks() is None
                allowed = {token_id for token_id in range(SIZE) if allows(rows, 0, token_id)}
                assert token_ids_of(rows.make_masks(np.array([0])).words[0]) == allowed
                drawn = numbers.choice(sorted(allowed))
                push(rows, 0, drawn)


def test_masks_of_many_rows_come_in_their_order(rows: GrammarRows) -> None:
    letters = "abcdefg"
    for place, letter in enumerate(letters):
        rows.fill(place, regex(letter), (), may_draw_freely=True)
    assert free_of(rows, *range(7)) == list(range(7))
    asked = np.array([0, 2, 3, 5, 6])
    masks = rows.make_masks(asked)
    assert masks.indices.tolist() == asked.tolist()
    assert [token_ids_of(words) for words in masks.words] == [{ord(letters[index])} for index in asked]


def test_json_and_rows_that_may_not_draw_freely_wait_for_their_masks(rows: GrammarRows) -> None:
    rows.fill(0, LLMatcher.grammar_from_json_schema({"type": "integer"}), (), may_draw_freely=True)
    rows.fill(1, regex("a"), (), may_draw_freely=True)
    rows.fill(2, regex("b"), ())
    assert free_of(rows, 0, 1, 2) == [1]
    masks = rows.masks()
    assert masks is not None
    assert masks.indices.tolist() == [0, 2]


def test_too_much_work_for_a_token_fails_one_row_alone() -> None:
    slowness = [0.0]
    times = itertools.count()
    rows = GrammarRows(SIZE, clock=lambda: next(times) * slowness[0])
    rows.load(VOCABULARY)
    for place in (0, 1):
        rows.fill(place, regex("a+"), (), may_draw_freely=True)
    assert free_of(rows, 0, 1) == [0, 1]
    assert not allows(rows, 0, ord("b"))
    assert rows.make_masks(np.array([0, 1])).failures == {}
    slowness[0] = 2 * TOKEN_TIME_LIMIT_S
    assert allows(rows, 0, ord("b")), "it is over, and what was drawn does not matter"
    slowness[0] = 0.0
    _, failures = rows.allow(np.array([0, 1]), np.array([ord("b")] * 2))
    assert list(failures) == [0]
    assert "more than" in failures[0]
    assert not allows(rows, 1, ord("b"))
