"""The tokenizer of the example model, against Transformers; and what holds for every tokenizer."""

import threading
import time
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_models import DATA, EXAMPLE_CHARACTERS, byte_level_backend, sentence_piece_metadata
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase

from headrace.contract.errors import StartupError
from headrace.router.gguf_tokenizer import build_gguf_tokenizer
from headrace.router.tokenizer import Tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<|im_", "end|>", "<file_sep>"]
NUMERALS = ["007", "3.14", "½", "٣", "Ⅷ"]
CLUSTERS = ["🇩🇪", "👩\u200d👩\u200d👧", "e\u0301", "\u00a0", "日本"]
PIECES = [*SPECIAL, *NUMERALS, *CLUSTERS, "  ", "\n\n", "\t", " \n ", "don't", "'LL"]
PART = st.one_of(st.sampled_from(PIECES), st.text(EXAMPLE_CHARACTERS, max_size=8))
MIXED_TEXT = st.lists(PART, max_size=12).map("".join)


def has_numeral(text: str) -> bool:
    return any(unicodedata.category(character).startswith("N") for character in text)


@settings(max_examples=400, deadline=None)
@given(text=MIXED_TEXT)
def test_tokens_equal_those_of_transformers(
    example_tokenizer: Tokenizer, transformers_tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    """Transformers leaves out the cut at numerals when it reads a GGUF file, so there the next test judges."""
    if not has_numeral(text):
        assert example_tokenizer.encode(text, add_special_tokens=True) == transformers_tokenizer(text)["input_ids"]


@pytest.fixture(scope="session")
def published_tokenizer(transformers_tokenizer: PreTrainedTokenizerBase) -> Backend:
    """As the model's tokenizer.json has it: each numeral is a piece, then GPT-2's expression."""
    backend: Backend = deepcopy(transformers_tokenizer.backend_tokenizer)
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return backend


@settings(max_examples=400, deadline=None)
@given(text=MIXED_TEXT)
def test_tokens_equal_those_of_the_published_tokenizer(
    example_tokenizer: Tokenizer, published_tokenizer: Backend, text: str
) -> None:
    assert example_tokenizer.encode(text, add_special_tokens=True) == published_tokenizer.encode(text).ids


@settings(max_examples=200, deadline=None)
@given(text=MIXED_TEXT, include=st.booleans())
def test_decoding_equals_that_of_transformers(
    example_tokenizer: Tokenizer, transformers_tokenizer: PreTrainedTokenizerBase, text: str, *, include: bool
) -> None:
    ids = example_tokenizer.encode(text, add_special_tokens=True)
    expected = transformers_tokenizer.decode(ids, skip_special_tokens=not include)
    assert example_tokenizer.decode(ids, include_special_tokens=include) == expected


@settings(max_examples=200, deadline=None)
@given(text=MIXED_TEXT)
def test_spans_lay_the_text_out_byte_by_byte(example_tokenizer: Tokenizer, text: str) -> None:
    ids, spans = example_tokenizer.encode_with_spans(text, add_special_tokens=True)
    assert ids == example_tokenizer.encode(text, add_special_tokens=True)
    data = text.encode()
    table = example_tokenizer.token_bytes(include_special_tokens=True)
    assert [data[start:end] for start, end in spans] == [table[token_id] for token_id in ids]
    assert [start for start, _ in spans] == [0, *(end for _, end in spans)][:-1]
    assert not spans or spans[-1][1] == len(data)


def test_spans_of_added_tokens_are_empty() -> None:
    backend = byte_level_backend()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A <s>", special_tokens=[("<s>", 256)])
    ids, spans = Tokenizer(backend).encode_with_spans("é<s>", add_special_tokens=True)
    assert ids[0] == ids[-1] == 256
    assert spans == [(0, 0), (0, 1), (1, 2), (2, 5), (5, 5)]


def test_spans_after_a_normalizer_are_those_of_characters() -> None:
    tokenizer = Tokenizer(build_gguf_tokenizer(sentence_piece_metadata(), DATA))
    ids, spans = tokenizer.encode_with_spans("über the", add_special_tokens=True)
    assert [tokenizer.token_text(token_id) for token_id in ids] == ["<s>", " ", "ü", "ber", " the"]
    # The space in front is not in the text; it shares the span of the character it was put before.
    assert spans == [(0, 0), (0, 2), (0, 2), (2, 5), (5, 9)]


def test_facts_about_the_example_model(example_tokenizer: Tokenizer) -> None:
    assert example_tokenizer.vocabulary_size == 49152
    assert example_tokenizer.special_token_ids == frozenset(range(17))
    assert example_tokenizer.token_id("<|im_end|>") == 2
    assert example_tokenizer.token_id("no such token") is None


def test_token_text_spells_out_special_tokens_and_replaces_lone_bytes(example_tokenizer: Tokenizer) -> None:
    assert example_tokenizer.token_text(2) == "<|im_end|>"
    first_byte, *_ = example_tokenizer.encode("٣", add_special_tokens=False)
    assert example_tokenizer.token_text(first_byte) == "\N{REPLACEMENT CHARACTER}"
    assert example_tokenizer.token_text(example_tokenizer.encode(" the", add_special_tokens=False)[0]) == " the"
    assert example_tokenizer.token_text(1_000_000) == ""


@pytest.mark.parametrize("unit", ["a", " ", "\n", "é", "🇩🇪", "1", "\x00", "<|im_end|>", "<|im_en", " \n", "A'", "_-"])
def test_huge_and_monotonous_text_is_encoded(example_tokenizer: Tokenizer, unit: str) -> None:
    text = unit * (200_000 // len(unit))
    ids = example_tokenizer.encode(text, add_special_tokens=True)
    assert example_tokenizer.decode(ids, include_special_tokens=True) == text


def longest_pause(work: Callable[[], object]) -> float:
    """Returns for which share of `work` another thread stood still at a stretch."""
    pauses = [0.0]
    started, ended = threading.Event(), threading.Event()

    def watch_clock() -> None:
        before = time.perf_counter()
        started.set()
        while not ended.is_set():
            now = time.perf_counter()
            pauses[0] = max(pauses[0], now - before)
            before = now

    watcher = threading.Thread(target=watch_clock)
    watcher.start()
    started.wait()
    begin = time.perf_counter()
    work()
    duration = time.perf_counter() - begin
    ended.set()
    watcher.join()
    return pauses[0] / duration


def test_other_threads_run_while_a_long_text_is_encoded(example_tokenizer: Tokenizer) -> None:
    """Otherwise one long prompt would hold up the streams of everybody else."""
    text = "The quick brown fox jumps over the lazy dog. " * 20_000
    assert longest_pause(lambda: example_tokenizer.encode(text, add_special_tokens=True)) < 0.5


def test_threads_share_a_tokenizer(example_tokenizer: Tokenizer) -> None:
    texts = [f"Text number {number}: " + "words and more words " * (number % 7) for number in range(200)]
    expected = [example_tokenizer.encode(text, add_special_tokens=True) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: example_tokenizer.encode(text, add_special_tokens=True), texts)) == expected


def test_padding_and_truncation_of_training_are_left_behind() -> None:
    backend = byte_level_backend()
    backend.enable_padding(length=20)
    backend.enable_truncation(2)
    assert len(Tokenizer(backend).encode("abcdef", add_special_tokens=True)) == 6


@pytest.mark.parametrize("decoder", [decoders.WordPiece(), decoders.BPEDecoder(), decoders.CTC()])
def test_decoders_that_join_tokens_are_refused(decoder: decoders.Decoder) -> None:
    backend = byte_level_backend()
    backend.decoder = decoder
    with pytest.raises(StartupError, match=type(decoder).__name__):
        Tokenizer(backend)


def test_a_vocabulary_of_whole_words_is_understood() -> None:
    backend = Backend(models.WordLevel({"a": 0, "bc": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = Tokenizer(backend)
    assert tokenizer.encode("bc a zz", add_special_tokens=True) == [1, 0, 2]
    assert tokenizer.decode([1, 0], include_special_tokens=True) == "bc a"
    assert tokenizer.token_text(1) == " bc"
