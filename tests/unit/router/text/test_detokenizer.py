"""Text from tokens as they come."""

from pathlib import Path

import pytest
from text_models import byte_level_backend, sentence_piece_metadata

from headrace.router.detokenizer import Detokenizer
from headrace.router.gguf_tokenizer import build_gguf_tokenizer
from headrace.router.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def byte_tokenizer() -> Tokenizer:
    """Each byte is a token."""
    return Tokenizer(byte_level_backend())


@pytest.fixture(scope="module")
def sentence_piece_tokenizer() -> Tokenizer:
    return Tokenizer(build_gguf_tokenizer(sentence_piece_metadata(), Path("model.gguf")))


def test_a_character_comes_with_its_last_byte(byte_tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(byte_tokenizer, include_special_tokens=False)
    ids = byte_tokenizer.encode("a🎉é", add_special_tokens=False)
    assert [detokenizer.push([token_id]) for token_id in ids] == ["a", "", "", "", "🎉", "", "é"]
    assert detokenizer.flush() == ""


def test_an_incomplete_character_is_replaced_at_the_end(byte_tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(byte_tokenizer, include_special_tokens=False)
    ids = byte_tokenizer.encode("x🎉", add_special_tokens=False)
    assert detokenizer.push(ids[:-1]) == "x"
    assert detokenizer.flush() == "\N{REPLACEMENT CHARACTER}"
    assert detokenizer.flush() == ""


def test_a_character_that_cannot_be_completed_is_replaced_at_once(byte_tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(byte_tokenizer, include_special_tokens=False)
    ids = byte_tokenizer.encode("🎉z", add_special_tokens=False)
    assert detokenizer.push(ids[:2]) == ""
    assert detokenizer.push(ids[-1:]) == "\N{REPLACEMENT CHARACTER}z"


def test_nothing_comes_of_nothing(byte_tokenizer: Tokenizer) -> None:
    assert Detokenizer(byte_tokenizer, include_special_tokens=False).push([]) == ""


@pytest.mark.parametrize(("include", "text"), [(True, "a<|im_end|>b"), (False, "ab")])
def test_special_tokens_are_text_only_if_asked_for(byte_tokenizer: Tokenizer, *, include: bool, text: str) -> None:
    ids = byte_tokenizer.encode("a<|im_end|>b", add_special_tokens=False)
    assert len(ids) == 3
    assert Detokenizer(byte_tokenizer, include_special_tokens=include).push(ids) == text


def test_ids_past_the_vocabulary_have_no_text(byte_tokenizer: Tokenizer) -> None:
    ids = byte_tokenizer.encode("ab", add_special_tokens=False)
    detokenizer = Detokenizer(byte_tokenizer, include_special_tokens=True)
    assert detokenizer.push([ids[0], byte_tokenizer.vocabulary_size, 10**9, ids[1]]) == "ab"


def test_the_space_that_a_completion_begins_with_is_kept(sentence_piece_tokenizer: Tokenizer) -> None:
    ids = sentence_piece_tokenizer.encode("the engine", add_special_tokens=False)
    assert Detokenizer(sentence_piece_tokenizer, include_special_tokens=False).push(ids) == " the engine"
    assert sentence_piece_tokenizer.decode(ids, include_special_tokens=False) == "the engine"


def test_bytes_in_place_of_unknown_characters_become_characters(sentence_piece_tokenizer: Tokenizer) -> None:
    ids = sentence_piece_tokenizer.encode("x🎉\n", add_special_tokens=False)
    detokenizer = Detokenizer(sentence_piece_tokenizer, include_special_tokens=False)
    texts = [detokenizer.push([token_id]) for token_id in ids]
    assert "".join(texts) == " x🎉\n"
    assert texts[-1] == "\n", "a byte that is a character of its own is not withheld"
