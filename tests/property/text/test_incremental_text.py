"""Text that comes in parts is the text that one decoding of all tokens gives."""

from hypothesis import given, settings
from hypothesis import strategies as st
from text_models import EXAMPLE_CHARACTERS

from headrace.router.detokenizer import Detokenizer
from headrace.router.tokenizer import Tokenizer

EXAMPLE_SIZE = 49152
SENTENCE_PIECE_SIZE = 700

# Words of the tokenizer, so that sequences are sensible; single bytes, so that they are not; anything at all.
EXAMPLE_IDS = st.lists(st.one_of(st.integers(0, EXAMPLE_SIZE - 1), st.integers(0, 300)), max_size=40)
SENTENCE_PIECE_IDS = st.lists(st.integers(0, SENTENCE_PIECE_SIZE - 1), max_size=40)
CUTS = st.lists(st.integers(1, 5), min_size=1, max_size=40)


def in_groups(ids: list[int], sizes: list[int]) -> list[list[int]]:
    groups = []
    at = 0
    while at < len(ids):
        size = sizes[len(groups) % len(sizes)]
        groups.append(ids[at : at + size])
        at += size
    return groups


def streamed(tokenizer: Tokenizer, groups: list[list[int]], *, include: bool) -> str:
    detokenizer = Detokenizer(tokenizer, include_special_tokens=include)
    return "".join([detokenizer.push(group) for group in groups]) + detokenizer.flush()


@settings(max_examples=300, deadline=None)
@given(ids=EXAMPLE_IDS, sizes=CUTS, include=st.booleans())
def test_any_tokens_in_any_groups(
    example_tokenizer: Tokenizer, ids: list[int], sizes: list[int], *, include: bool
) -> None:
    expected = example_tokenizer.decode(ids, include_special_tokens=include)
    assert streamed(example_tokenizer, in_groups(ids, sizes), include=include) == expected


@settings(max_examples=200, deadline=None)
@given(text=st.text(EXAMPLE_CHARACTERS, max_size=60), sizes=CUTS)
def test_any_text_in_any_groups(example_tokenizer: Tokenizer, text: str, sizes: list[int]) -> None:
    ids = example_tokenizer.encode(text, add_special_tokens=False)
    assert streamed(example_tokenizer, in_groups(ids, sizes), include=True) == text


@settings(max_examples=200, deadline=None)
@given(ids=EXAMPLE_IDS)
def test_released_text_is_never_taken_back(example_tokenizer: Tokenizer, ids: list[int]) -> None:
    detokenizer = Detokenizer(example_tokenizer, include_special_tokens=True)
    sent = ""
    for count, token_id in enumerate(ids, 1):
        sent += detokenizer.push([token_id])
        whole = example_tokenizer.decode(ids[:count], include_special_tokens=True)
        assert whole.startswith(sent)
        assert len(whole) - len(sent) <= 1, "more than one open character was withheld"


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60), sizes=CUTS)
def test_any_text_with_byte_fallback(sentence_piece_tokenizer: Tokenizer, text: str, sizes: list[int]) -> None:
    """What SentencePiece writes a space as cannot be told from a space again."""
    ids = sentence_piece_tokenizer.encode(text.replace("\u2581", " "), add_special_tokens=False)
    expected = f" {text}" if text else ""
    assert streamed(sentence_piece_tokenizer, in_groups(ids, sizes), include=True) == expected.replace("\u2581", " ")


@settings(max_examples=300, deadline=None)
@given(ids=SENTENCE_PIECE_IDS, sizes=CUTS, include=st.booleans())
def test_any_tokens_with_byte_fallback(
    sentence_piece_tokenizer: Tokenizer, ids: list[int], sizes: list[int], *, include: bool
) -> None:
    """Where bytes are no UTF-8, one decoding replaces the whole run of bytes; a stream keeps what is valid in it."""
    text = streamed(sentence_piece_tokenizer, in_groups(ids, sizes), include=include)
    # A first token that is kept makes sure that the space after it is kept.
    anchor = sentence_piece_tokenizer.encode("a", add_special_tokens=False)
    start = len(sentence_piece_tokenizer.decode(anchor, include_special_tokens=include))
    whole = sentence_piece_tokenizer.decode(anchor + ids, include_special_tokens=include)[start:]
    if "\N{REPLACEMENT CHARACTER}" not in whole:
        assert text == whole
    else:
        assert "\N{REPLACEMENT CHARACTER}" in text
