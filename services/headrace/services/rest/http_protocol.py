"""HTTP/1.1 as uvicorn reads it, with bounds for the size of what comes and for the time it takes."""

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from headrace.services.rest import refusals
from headrace.services.rest.head_check import HeadRefused, check_head
from headrace.services.rest.piece_writer import offer_pieces
from headrace.services.rest.unchunked_answer import send_without_chunks
from headrace.services.rest.upgrade_offers import OfferlessParser
from headrace.services.rest.wire_count import WireCount


class BoundedProtocol(HttpToolsProtocol):
    """Answers 431, 408 or 400 where uvicorn would go on with a head as long as it comes, or does not, or is none."""

    head_timeout_s = 60.0
    """From when a connection is made, or a request begins on one that is kept, until its headers are there."""

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
        self._count = WireCount()

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
        self._count.begin_piece()
        super().data_received(data)
        if self._count.end_piece(len(data)):
            self._refuse(refusals.TOO_LARGE)

    def on_message_begin(self) -> None:
        """Takes note of the beginning of a request."""
        self._count.begin_head()
        self._start_timer()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Takes note of the end of the headers."""
        self._count.begin_body()
        self._stop_timer()
        self.check_head()
        if self.parser.should_upgrade():
            raise ValueError("there are no tunnels here")
        super().on_headers_complete()
        if self.parser.get_http_version() == "1.0":
            send_without_chunks(self.cycle)
        offer_pieces(self.scope, self.cycle)
        # Trailers are no headers, which a proxy may have checked: they would be added to what the request has.
        self.headers = []

    def check_head(self) -> None:
        """Refuses a head that is not to be had.

        Raises:
            HeadRefused: it was refused, which ends the parser, too.
        """
        try:
            check_head(self.url, self.headers, self.parser.get_http_version())
        except HeadRefused as refused:
            # What the parser's end would have uvicorn say is not sent any more.
            self._refuse(refused.answer)
            raise

    def on_body(self, body: bytes) -> None:
        """Takes a piece of a body."""
        self._count.add_body(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Takes note of the end of a body."""
        self._count.end_body()
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Takes note of the end of an answer. What is left of a body that was refused is let come, but not forever."""
        super().on_response_complete()
        if self._count.is_in_body:
            self._start_timer()

    def send_400_response(self, msg: str) -> None:
        """Answers a request that is none, unless it was answered, or the answer would come within that to another."""
        if self.transport.is_closing():
            return
        if self._is_answering and (not self._count.is_in_body or self.pipeline or self.cycle.response_started):
            self.transport.close()
        else:
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
        elif self._count.is_in_body:
            self.transport.close()
        else:
            self._refuse(refusals.TOO_SLOW)

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


def bounded_protocol(head_timeout_s: float) -> type[BoundedProtocol]:
    """Returns the protocol for uvicorn, which makes an instance for each connection."""
    return type("Protocol", (BoundedProtocol,), {"head_timeout_s": head_timeout_s})
