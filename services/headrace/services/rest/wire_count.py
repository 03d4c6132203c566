"""Counts what comes on a connection beside the bodies of its requests: heads, and what frames a chunked body."""

from typing import Final

HEAD_LIMIT_BYTES: Final = 32 * 1024
"""What a request line with all headers may take. Keys, ids and traces take a few hundred bytes."""

_CHUNK_FRAME_FACTOR: Final = 8
"""How many bytes may bring one of a body: a chunk of one comes in six."""
_CHUNK_FRAME_CREDIT: Final = 2**18
"""What a body may bring in advance: what is read in one piece, of which no more than this is known to be its own."""


class WireCount:
    """Is told of each piece before and after it is parsed, and of what the parser finds in it."""

    def __init__(self) -> None:
        self.is_in_body = False
        """Whether the head of a request has come, and not yet its end."""
        self._is_in_head = False
        self._is_first_piece = False
        """Whether the head began in the piece that is being read."""
        self._request_number = 0
        self._body_before: int | None = None
        """Number of the request within whose body the piece began."""
        self._head_size_bytes = 0
        self._frame_size_bytes = 0
        """What came of a chunked body beside the body: sizes, extensions and trailers, less what small chunks need."""

    def begin_piece(self) -> None:
        """Notes that a piece will be parsed.

        What came before the head in the same piece is not the head's, so its
        first piece is not counted here. It has a bounded size, and what was in
        it is known when the head is complete.
        """
        self._body_before = self._request_number if self.is_in_body else None
        self._is_first_piece = not self._is_in_head

    def end_piece(self, size_bytes: int) -> bool:
        """Notes that a piece has been parsed; returns whether more came than may."""
        if self.is_in_body and self._body_before == self._request_number:
            self._frame_size_bytes += size_bytes
            return self._frame_size_bytes > HEAD_LIMIT_BYTES
        if self._is_in_head and not self._is_first_piece:
            self._head_size_bytes += size_bytes
            return self._head_size_bytes > HEAD_LIMIT_BYTES
        return False

    def begin_head(self) -> None:
        """Notes that a request begins."""
        self._request_number += 1
        self._is_in_head = self._is_first_piece = True
        self._head_size_bytes = self._frame_size_bytes = 0

    def begin_body(self) -> None:
        """Notes that a head is complete."""
        self._is_in_head = False
        self.is_in_body = True

    def add_body(self, size_bytes: int) -> None:
        """Notes a part of a body, which may have come in several times as many bytes."""
        paid_bytes = self._frame_size_bytes - _CHUNK_FRAME_FACTOR * size_bytes
        self._frame_size_bytes = max(paid_bytes, -_CHUNK_FRAME_CREDIT)

    def end_body(self) -> None:
        """Notes that a request is complete."""
        self.is_in_body = False
