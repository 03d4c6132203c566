"""Turns the tokens of one completion into text, as soon as it is final."""

from codecs import utf_8_decode
from collections.abc import Sequence

from headrace.router.tokenizer import Tokenizer


class Detokenizer:
    """Makes a stream of text out of a stream of token ids, however they are grouped.

    A character is returned once its last byte is there. Bytes that cannot become
    UTF-8 are replaced by U+FFFD, as one decoding of all bytes would have done.
    The text is that of a completion: it goes on where a prompt stopped, so a
    leading space is kept.
    """

    __slots__ = ("_open_bytes", "_table")

    def __init__(self, tokenizer: Tokenizer, *, include_special_tokens: bool) -> None:
        self._table = tokenizer.token_bytes(include_special_tokens=include_special_tokens)
        self._open_bytes = b""
        """The first bytes of a character; at most three."""

    def push(self, token_ids: Sequence[int]) -> str:
        """Returns the text that these tokens complete; may be empty."""
        table = self._table
        try:
            data = b"".join([table[token_id] for token_id in token_ids])
        except IndexError:
            # Models round their vocabulary up: ids past the tokenizer's have no text.
            data = b"".join([table[token_id] for token_id in token_ids if token_id < len(table)])
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
