"""Tokenizers built from GGUF metadata, against what llama.cpp and SentencePiece answered for the same vocabulary."""

import json
from pathlib import Path

import pytest
from text_models import DATA, byte_level_metadata, sentence_piece_metadata

from headrace.contract.errors import StartupError
from headrace.router.gguf_metadata import GgufValue
from headrace.router.gguf_pre_tokenizers import PRE_TOKENIZATIONS
from headrace.router.gguf_tokenizer import build_gguf_tokenizer
from headrace.router.tokenizer import Tokenizer

PATH = Path("model.gguf")


def build(metadata: dict[str, GgufValue]) -> Tokenizer:
    return Tokenizer(build_gguf_tokenizer(metadata, PATH))


@pytest.mark.parametrize("name", ["smollm", "gpt-2", "llama-bpe", "qwen2", "default"])
def test_byte_level_tokens_equal_those_of_llama_cpp(example_metadata: dict[str, GgufValue], name: str) -> None:
    """The file holds llama.cpp's tokens for the example model's vocabulary under five pre-tokenizer names."""
    tokenizer = build({**example_metadata, "tokenizer.ggml.pre": name, "tokenizer.ggml.add_bos_token": False})
    for row in json.loads((DATA / "byte_level_tokens.json").read_text()):
        assert tokenizer.encode(row["text"], add_special_tokens=True) == row["token_ids"][name], row["text"]


def test_sentence_piece_tokens_equal_those_of_llama_cpp() -> None:
    tokenizer = build(sentence_piece_metadata())
    for row in json.loads((DATA / "sentence_piece_tokens.json").read_text())["texts"]:
        assert tokenizer.encode(row["text"], add_special_tokens=False) == row["token_ids"], row["text"]


def test_sentence_piece_text_survives_the_round_trip() -> None:
    tokenizer = build(sentence_piece_metadata())
    for row in json.loads((DATA / "sentence_piece_tokens.json").read_text())["texts"]:
        if "<" not in row["text"]:
            assert tokenizer.decode(row["token_ids"], include_special_tokens=True) == row["text"]


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("gpt-2", ["x", "ĠAb", "ĠcdE", "'", "LL", "Ġ12345", "ĠĠ", "ĠéģĹ"]),
        ("smollm", ["x", "ĠAb", "ĠcdE", "'", "LL", "Ġ", "1", "2", "3", "4", "5", "ĠĠ", "ĠéģĹ"]),
        ("llama-bpe", ["x", "ĠAb", "ĠcdE", "'LL", "Ġ", "123", "45", "ĠĠ", "ĠéģĹ"]),
        ("qwen2", ["x", "ĠAb", "ĠcdE", "'LL", "Ġ", "1", "2", "3", "4", "5", "ĠĠ", "ĠéģĹ"]),
        ("qwen35", ["x", "ĠAb", "ĠcdE", "'LL", "Ġ", "1", "2", "3", "4", "5", "ĠĠ", "ĠéģĹ"]),
        ("tekken", ["x", "ĠAb", "Ġcd", "E", "'LL", "Ġ", "1", "2", "3", "4", "5", "ĠĠ", "ĠéģĹ"]),
        ("gpt-4o", ["x", "ĠAb", "Ġcd", "E'LL", "Ġ", "123", "45", "ĠĠ", "ĠéģĹ"]),
    ],
)
def test_names_cut_text_as_their_models_do(name: str, pieces: list[str]) -> None:
    cut = PRE_TOKENIZATIONS[name].build().pre_tokenize_str("x Ab cdE'LL 12345   遗")
    assert [piece for piece, _ in cut] == pieces


def test_a_whole_piece_needs_no_merges_where_the_name_says_so() -> None:
    metadata = byte_level_metadata(tokens=("a", "b", "ab", "<s>"), token_type=(1, 1, 1, 3), bos_token_id=3)
    assert build({**metadata, "tokenizer.ggml.pre": "gpt-2"}).encode("ab", add_special_tokens=False) == [0, 1]
    assert build({**metadata, "tokenizer.ggml.pre": "llama-bpe"}).encode("ab", add_special_tokens=False) == [2]


@pytest.mark.parametrize(
    ("changes", "begins", "ends"),
    [
        ({}, False, False),
        ({"add_bos_token": True}, True, False),
        ({"add_eos_token": True}, False, True),
        ({"add_bos_token": True, "add_eos_token": True}, True, True),
        ({"pre": "llama-bpe"}, True, False),
        ({"pre": "llama-bpe", "add_bos_token": False}, False, False),
    ],
)
def test_special_tokens_are_added_as_the_file_says(changes: dict[str, GgufValue], *, begins: bool, ends: bool) -> None:
    tokenizer = build(byte_level_metadata(**changes))
    mark = tokenizer.token_id("<s>")
    letter = tokenizer.token_id("x")
    assert tokenizer.encode("x", add_special_tokens=True) == [mark] * begins + [letter] + [mark] * ends
    assert tokenizer.encode("x", add_special_tokens=False) == [letter]


def test_sentence_piece_begins_with_its_mark_unless_told_otherwise() -> None:
    metadata = sentence_piece_metadata()
    assert build(metadata).encode("a", add_special_tokens=True)[0] == 1
    assert build({**metadata, "tokenizer.ggml.add_bos_token": False}).encode("a", add_special_tokens=True)[0] != 1


def test_a_space_before_the_text_is_left_out_when_the_file_says_so() -> None:
    tokenizer = build({**sentence_piece_metadata(), "tokenizer.ggml.add_space_prefix": False})
    ids = tokenizer.encode("the", add_special_tokens=False)
    assert "".join(tokenizer.token_text(token_id) for token_id in ids) == "the"


def test_control_tokens_are_special_and_those_of_the_user_are_not() -> None:
    tokenizer = build(sentence_piece_metadata())
    assert tokenizer.special_token_ids == {0, 1, 2}
    assert tokenizer.token_id("<tool>") == 3
    assert tokenizer.decode([2, 3], include_special_tokens=False) == "<tool>"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model": "bert"}, r"tokenizer\.ggml\.model is 'bert'"),
        ({"model": ()}, r"tokenizer\.ggml\.model is missing"),
        ({"pre": "unheard-of"}, "the pre-tokenizer 'unheard-of'.*llama-bpe"),
        ({"merges": "a b"}, r"tokenizer\.ggml\.merges is missing or of the wrong type"),
        ({"merges": ("a nothing",)}, "'a nothing', of which a part is no token"),
        ({"tokens": ("a", "a")}, "lists a token twice"),
        ({"model": "llama"}, r"tokenizer\.ggml\.scores is missing"),
    ],
)
def test_metadata_that_cannot_work_is_explained(changes: dict[str, GgufValue], complaint: str) -> None:
    with pytest.raises(StartupError, match=complaint):
        build_gguf_tokenizer(byte_level_metadata(**changes), PATH)


def test_a_file_without_a_pre_tokenizer_takes_the_default_one() -> None:
    metadata = byte_level_metadata(merges=())
    del metadata["tokenizer.ggml.pre"]
    assert build(metadata).encode("a1", add_special_tokens=False) != []
