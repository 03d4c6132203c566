"""HTTP/1.1 as uvicorn reads it, with bounds for the size of a request's head and for the time it takes to come."""

import asyncio
from typing import TYPE_CHECKING, Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from headrace.services.rest.piece_writer import offer_pieces
from headrace.services.rest.upgrade_offers import OfferlessParser

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent

HEAD_LIMIT_BYTES: Final = 32 * 1024
"""What a request line with all headers may take. Keys, ids and traces take a few hundred bytes."""


def _answer(status: bytes, text: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (
        status,
        len(text),
        text,
    )


_TOO_LARGE: Final = _answer(
    b"431 Request Header Fields Too Large",
    b"the request line and the headers are larger than the limit of %d bytes" % HEAD_LIMIT_BYTES,
)
_TOO_SLOW: Final = _answer(b"408 Request Timeout", b"the request line and the headers took too long to come")


_CHUNK_FRAME_FACTOR: Final = 8
"""How many bytes may bring one of a body: a chunk of one comes in six."""
_CHUNK_FRAME_CREDIT: Final = 2**18
"""What a body may bring in advance: what is read in one piece, of which no more than this is known to be its own."""


def _send_without_chunks(cycle: RequestResponseCycle) -> None:
    """Has an answer of open length end with the connection: HTTP/1.0 knows no chunks."""
    server_send = cycle.send
    is_open = False

    async def send(message: "ASGISendEvent") -> None:
        nonlocal is_open
        if message["type"] == "http.response.start":
            is_open = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
            if is_open:
                cycle.chunked_encoding = False
        elif message["type"] == "http.response.body" and is_open:
            cycle.expected_content_length = len(message.get("body", b""))
        await server_send(message)

    cycle.send = send  # type: ignore[method-assign]  # the server makes its cycles itself


class BoundedHeadProtocol(HttpToolsProtocol):
    """Answers 431 or 408 where uvicorn would go on waiting for a head as long as it comes, or does not."""

    head_timeout_s = 60.0
    """From when a connection is made, or a request begins on one that is kept, until its headers are there."""

    _is_in_head = False
    _is_first_piece = False
    """Whether the head began in the piece that is being read."""
    _is_in_body = False
    _head_size_bytes = 0
    _frame_size_bytes = 0
    """What came of a chunked body beside the body: sizes, extensions and trailers, less what small chunks need."""
    _timer: asyncio.TimerHandle | None = None

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.parser = OfferlessParser(self)  # type: ignore[assignment]  # it has what uvicorn calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Takes a new connection."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Takes note of the end of a connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes bytes of a connection."""
        # What came before the head in the same piece is not the head's, so its first piece is not counted
        # here. It has a bounded size, and `on_headers_complete` sees what was in it.
        body_before = self.cycle if self._is_in_body else None
        self._is_first_piece = not self._is_in_head
        super().data_received(data)
        if body_before is not None and self._is_in_body and self.cycle is body_before:
            self._frame_size_bytes += len(data)
            if self._frame_size_bytes > HEAD_LIMIT_BYTES:
                self._refuse(_TOO_LARGE)
        elif self._is_in_head and not self._is_first_piece:
            self._head_size_bytes += len(data)
            if self._head_size_bytes > HEAD_LIMIT_BYTES:
                self._refuse(_TOO_LARGE)

    def on_message_begin(self) -> None:
        """Takes note of the beginning of a request."""
        self._is_in_head = self._is_first_piece = True
        self._head_size_bytes = self._frame_size_bytes = 0
        self._start_timer()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Takes note of the end of the headers."""
        self._is_in_head = False
        self._is_in_body = True
        self._stop_timer()
        self.check_head()
        if self.parser.should_upgrade():
            raise ValueError("there are no tunnels here")
        super().on_headers_complete()
        if self.parser.get_http_version() == "1.0":
            _send_without_chunks(self.cycle)
        offer_pieces(self.scope, self.cycle)
        # Trailers are no headers, which a proxy may have checked: they would be added to what the request has.
        self.headers = []

    def check_head(self) -> None:
        """Refuses a head that is too large, which is known for certain when it is complete."""
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > HEAD_LIMIT_BYTES:
            self._refuse(_TOO_LARGE)
            # Ends the parser, too; what it would have uvicorn say is not sent any more.
            raise ValueError("the head is too large")

    def on_body(self, body: bytes) -> None:
        """Takes a piece of a body."""
        self._frame_size_bytes = max(self._frame_size_bytes - _CHUNK_FRAME_FACTOR * len(body), -_CHUNK_FRAME_CREDIT)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Takes note of the end of a body."""
        self._is_in_body = False
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Takes note of the end of an answer. What is left of a body that was refused is let come, but not forever."""
        super().on_response_complete()
        if self._is_in_body:
            self._start_timer()

    def send_400_response(self, msg: str) -> None:
        """Answers a request that is none, unless it was answered."""
        if not self.transport.is_closing():
            super().send_400_response(msg)

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(self.head_timeout_s, self._end_waiting)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_waiting(self) -> None:
        if self._is_answering:
            self._start_timer()
        elif self._is_in_body:
            self.transport.close()
        else:
            self._refuse(_TOO_SLOW)

    @property
    def _is_answering(self) -> bool:
        """Whether an earlier request of the connection is not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, answer: bytes) -> None:
        if self.transport.is_closing():
            return
        if not self._is_answering:
            self.transport.write(answer)
        self.transport.close()


def bounded_protocol(head_timeout_s: float) -> type[BoundedHeadProtocol]:
    """Returns the protocol for uvicorn, which makes an instance for each connection."""
    return type("Protocol", (BoundedHeadProtocol,), {"head_timeout_s": head_timeout_s})
