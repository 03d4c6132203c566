"""Turns text into token ids and token ids into bytes, quickly and from any thread."""

from collections.abc import Sequence

import tokenizers
from tokenizers import decoders

from headrace.contract.errors import StartupError
from headrace.contract.vocabulary import Vocabulary

_BYTE_TOKEN_LENGTH = len("<0x00>")


class Tokenizer:
    """A model's tokenizer. Immutable, so that threads may share it.

    Holds the bytes of every token: a stream of text is made by looking them up,
    which is exact where a character's bytes lie in several tokens.
    """

    __slots__ = ("_backend", "_bytes", "_is_byte_level", "_known_texts", "_spelled_bytes", "special_token_ids")

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Takes a tokenizer over.

        Raises:
            StartupError: the text of its tokens depends on their neighbours.
        """
        # Padding and truncation are settings of training; some published files still carry them.
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.special_token_ids = frozenset(
            token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        )
        """Ids that mark structure, such as the end of a turn, and are no text of their own."""
        self._is_byte_level = isinstance(backend.decoder, decoders.ByteLevel)
        tokens = _tokens_by_id(backend)
        spelled = _byte_level_bytes(tokens) if self._is_byte_level else _decoded_bytes(backend, tokens)
        self._spelled_bytes = tuple(spelled)
        for token_id in self.special_token_ids:
            spelled[token_id] = b""
        self._bytes = tuple(spelled)
        self._known_texts: dict[bool, dict[int, str]] = {False: {}, True: {}}
        """By whether special tokens are spelled out."""

    @property
    def vocabulary_size(self) -> int:
        """One more than the highest token id."""
        return len(self._bytes)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Returns the token ids of a text. Special tokens spelled out in the text become their ids."""
        # NOTE: encode() would hold the interpreter lock to the end, and with it every stream of the
        # process: a second for a long prompt. Only the batch functions let go of it.
        ids: list[int] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        return ids

    def encode_with_spans(self, text: str, *, add_special_tokens: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns the token ids of a text and, for each, its half-open range of bytes in the text.

        A token that is not in the text, such as an added beginning of sequence, has an empty range.
        """
        encoding = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)[0]
        ids: list[int] = encoding.ids
        spans = self._exact_spans(text, ids, encoding.special_tokens_mask) if self._is_byte_level else None
        return ids, spans or _byte_spans(text, encoding.offsets)

    def decode(self, token_ids: Sequence[int], *, include_special_tokens: bool) -> str:
        """Returns the text of whole token ids; bytes that are no UTF-8 are replaced."""
        text: str = self._backend.decode(list(token_ids), skip_special_tokens=not include_special_tokens)
        return text

    def token_text(self, token_id: int) -> str:
        """Returns the text of one token as it follows others: special tokens spelled out, lone bytes replaced."""
        if token_id >= len(self._spelled_bytes):
            return ""
        return self._spelled_bytes[token_id].decode("utf-8", "replace")

    def token_id(self, token: str) -> int | None:
        """Returns the id of a token as the vocabulary spells it."""
        token_id: int | None = self._backend.token_to_id(token)
        return token_id

    def token_bytes(self, *, include_special_tokens: bool) -> tuple[bytes, ...]:
        """Returns the bytes that each token adds to a text that goes on, by id."""
        return self._spelled_bytes if include_special_tokens else self._bytes

    def known_texts(self, *, include_special_tokens: bool) -> dict[int, str]:
        """Returns the texts of tokens that are whole characters, by id, as far as detokenizers have found them out.

        They share it and add to it, so it never has more than the vocabulary's tokens.
        """
        return self._known_texts[include_special_tokens]

    def vocabulary(self, end_of_sequence_token_ids: tuple[int, ...]) -> Vocabulary:
        """Returns the tokens for those who follow grammars, with the ids that end a completion."""
        return Vocabulary(
            token_bytes=self._spelled_bytes,
            special_token_ids=tuple(sorted(self.special_token_ids)),
            end_of_sequence_token_ids=end_of_sequence_token_ids,
        )

    def _exact_spans(self, text: str, ids: list[int], is_inserted: list[int]) -> list[tuple[int, int]] | None:
        """Lays the tokens' bytes end to end. None if they are not the text's bytes, as after a normalizer."""
        spans: list[tuple[int, int]] = []
        end = 0
        for token_id, inserted in zip(ids, is_inserted, strict=True):
            start = end
            end += 0 if inserted else len(self._spelled_bytes[token_id])
            spans.append((start, end))
        return spans if end == len(text.encode()) else None


def _tokens_by_id(backend: tokenizers.Tokenizer) -> list[str]:
    """Returns the tokens by id, empty where an id is not in use. Added tokens hide those of the model."""
    vocabulary = backend.get_vocab(with_added_tokens=False)
    added = backend.get_added_tokens_decoder()
    tokens = [""] * (max([*vocabulary.values(), *added, -1]) + 1)
    for token, token_id in vocabulary.items():
        tokens[token_id] = token
    for token_id, added_token in added.items():
        tokens[token_id] = added_token.content
    return tokens


def _byte_level_bytes(tokens: list[str]) -> list[bytes]:
    """Returns the bytes of tokens that are spelled with one character for each byte."""
    # GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes follow from U+0100 in order.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    # A character outside of the alphabet must not pass for a byte.
    to_latin_1 = dict.fromkeys(others, 0xFFFF) | {0x100 + index: byte for index, byte in enumerate(others)}

    def spelled_out(token: str) -> bytes:
        try:
            return token.translate(to_latin_1).encode("latin-1")
        except UnicodeEncodeError:
            # An added token, spelled as it is.
            return token.encode()

    return [spelled_out(token) for token in tokens]


def _decoded_bytes(backend: tokenizers.Tokenizer, tokens: list[str]) -> list[bytes]:
    """Returns the bytes that a decoder makes of each token when it follows another.

    Only then is a leading space sure to be kept: it is part of the text that a completion goes on with.

    Raises:
        StartupError: the decoder looks at more than one token at a time.
    """
    # A decoder joined over neighbours would turn into wrong text silently.
    kind = type(backend.decoder)
    if kind in (decoders.WordPiece, decoders.BPEDecoder, decoders.CTC):
        raise StartupError(
            f"tokenizers with a {kind.__name__} decoder are not supported: it does not decode token by token"
        )
    anchor = backend.encode("a", add_special_tokens=False).ids[-1:]
    pairs = [[*anchor, token_id] for token_id in range(len(tokens))]
    start = len(backend.decode(anchor, skip_special_tokens=False))
    texts = backend.decode_batch(pairs, skip_special_tokens=False)
    return [_fallback_byte(token) or text[start:].encode() for token, text in zip(tokens, texts, strict=True)]


def _fallback_byte(token: str) -> bytes | None:
    """Returns the byte that a token such as <0x0A> stands for in a SentencePiece vocabulary."""
    if len(token) != _BYTE_TOKEN_LENGTH or not (token.startswith("<0x") and token.endswith(">")):
        return None
    try:
        return bytes.fromhex(token[3:5])
    except ValueError:
        return None


def _byte_spans(text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Turns ranges of characters into ranges of bytes."""
    if text.isascii():
        return spans
    offsets = [0]
    for character in text:
        offsets.append(offsets[-1] + len(character.encode()))
    return [(offsets[start], offsets[end]) for start, end in spans]
