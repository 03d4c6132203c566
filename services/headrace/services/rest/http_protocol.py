"""HTTP/1.1 as uvicorn reads it, with a bound for the line and the headers of a request."""

from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_LIMIT_BYTES: Final = 32 * 1024
"""What a request line with all headers may take. Keys, ids and traces take a few hundred bytes."""

_REFUSAL: Final = b"the request line and the headers are larger than the limit of %d bytes" % HEAD_LIMIT_BYTES


class BoundedHeadProtocol(HttpToolsProtocol):
    """Answers 431 where uvicorn would go on collecting headers as long as they come."""

    _is_in_head = False
    _head_size_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Takes bytes of a connection."""
        # What came before the head in the same piece is not the head's, so its first piece is not counted
        # here. It has a bounded size, and `on_headers_complete` sees what was in it.
        was_in_head = self._is_in_head
        super().data_received(data)
        if was_in_head and self._is_in_head:
            self._head_size_bytes += len(data)
            if self._head_size_bytes > HEAD_LIMIT_BYTES:
                self._refuse()

    def on_message_begin(self) -> None:
        """Takes note of the beginning of a request."""
        self._is_in_head = True
        self._head_size_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Takes note of the end of the headers."""
        self._is_in_head = False
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > HEAD_LIMIT_BYTES:
            self._refuse()
            # Ends the parser, too; what it would have uvicorn say is not sent any more.
            raise ValueError(_REFUSAL.decode())
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers a request that is none, unless it was answered."""
        if not self.transport.is_closing():
            super().send_400_response(msg)

    def _refuse(self) -> None:
        self.transport.write(
            b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(_REFUSAL), _REFUSAL)
        )
        self.transport.close()
