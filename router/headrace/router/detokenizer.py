"""Turns the tokens of one completion into text, as soon as it is final."""

from codecs import utf_8_decode
from collections.abc import Iterable, Sequence

from headrace.router.tokenizer import Tokenizer


class Detokenizer:
    """Makes a stream of text out of a stream of token ids, however they are grouped.

    A character is returned once its last byte is there. Bytes that cannot become
    UTF-8 are replaced by U+FFFD, as one decoding of all bytes would have done.
    The text is that of a completion: it goes on where a prompt stopped, so a
    leading space is kept.
    """

    __slots__ = ("_open_bytes", "_spelled", "_table", "_texts")

    def __init__(
        self, tokenizer: Tokenizer, *, include_special_tokens: bool, spelled_tokens: Iterable[str] = ()
    ) -> None:
        """Starts without a token.

        Args:
            tokenizer: Of the model.
            include_special_tokens: Whether special tokens are spelled out in the text.
            spelled_tokens: Special tokens that are spelled out in any case. Texts that are none are ignored.
        """
        self._spelled: dict[int, bytes] = {}
        if not include_special_tokens:
            for token in spelled_tokens:
                token_id = tokenizer.token_id(token)
                if token_id in tokenizer.special_token_ids:
                    self._spelled[token_id] = token.encode()
        self._table = tokenizer.token_bytes(include_special_tokens=include_special_tokens)
        # Marks are spelled for some completions alone, so what others learned does not hold for these.
        self._texts = {} if self._spelled else tokenizer.known_texts(include_special_tokens=include_special_tokens)
        self._open_bytes = b""
        """The first bytes of a character; at most three."""

    def push(self, token_ids: Sequence[int]) -> str:
        """Returns the text that these tokens complete; may be empty."""
        if len(token_ids) != 1 or self._open_bytes:
            return self._decode(b"".join(map(self._bytes_of, token_ids)))
        # The usual case: one token of whole characters, whose text is the same wherever it comes.
        [token_id] = token_ids
        text = self._texts.get(token_id)
        if text is None:
            text = self._decode(self._bytes_of(token_id))
            if not self._open_bytes:
                self._texts[token_id] = text
        return text

    def _bytes_of(self, token_id: int) -> bytes:
        # Models round their vocabulary up: ids past the tokenizer's have no text.
        return self._spelled.get(token_id) or (self._table[token_id] if token_id < len(self._table) else b"")

    def _decode(self, data: bytes) -> str:
        """Returns the text of the characters that these bytes complete."""
        if self._open_bytes:
            data = self._open_bytes + data
        text, used_count = utf_8_decode(data, "replace")
        self._open_bytes = data[used_count:]
        return text

    def flush(self) -> str:
        """Returns what is left when no token follows: the replacement of an incomplete character, or nothing."""
        text = self._open_bytes.decode("utf-8", "replace")
        self._open_bytes = b""
        return text
