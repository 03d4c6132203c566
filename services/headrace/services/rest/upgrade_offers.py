"""A parser of requests that passes over every offer to go on in another protocol.

Java's `HttpClient`, and so what is built on it, offers HTTP/2 with each request over plain HTTP, also with one that has
a body. A server may answer by HTTP/1.1 as if nothing was offered (RFC 9110, 7.8). The parser of httptools cannot: where
it sees an offer it takes the message to end with its headers, so a body would be lost, and then read as a next request
that a proxy in front has not seen. Here such a request is parsed once more, by a new parser, without the offer.
"""

from collections.abc import Iterator
from typing import Final, Protocol

import httptools

_OFFERS: Final = frozenset({b"upgrade", b"http2-settings"})
"""Headers that make up an offer, which the header `connection` names, too."""


class RequestTaker(Protocol):
    """What is told of requests: a protocol of uvicorn, which keeps the head of the one that it is told of."""

    url: bytes
    headers: list[tuple[bytes, bytes]]

    def on_message_begin(self) -> None:
        """Takes note of the beginning of a request, or of one that begins anew without its offer."""

    def on_url(self, url: bytes) -> None:
        """Takes a piece of a path."""

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a header or a trailer."""

    def check_head(self) -> None:
        """Raises `ValueError` if the head is not to be had. Asked once more when the offer is left out."""

    def on_headers_complete(self) -> None:
        """Takes note of the end of the headers."""

    def on_body(self, body: bytes) -> None:
        """Takes a piece of a body."""

    def on_message_complete(self) -> None:
        """Takes note of the end of a request."""


def _without_offer(headers: list[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    for name, value in headers:
        if name == b"connection":
            options = [option.strip() for option in value.split(b",")]
            yield name, b", ".join(option for option in options if option.lower() not in _OFFERS)
        elif name not in _OFFERS:
            yield name, value


class OfferlessParser:
    """Has the methods of a parser that uvicorn calls."""

    def __init__(self, taker: RequestTaker) -> None:
        self._taker = taker
        self._head: bytes | None = None
        """The head of a request with an offer, without it, until it is parsed once more."""
        # The parser looks these up here; only two of them are not simply the taker's.
        self.on_message_begin = taker.on_message_begin
        self.on_url = taker.on_url
        self.on_header = taker.on_header
        self.on_body = taker.on_body
        self._parser = self._make_parser()

    def _make_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # As uvicorn has it: a request is answered although another follows one that is the last.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def feed_data(self, data: bytes) -> None:
        """Parses what comes next."""
        rest = memoryview(data)  # so that many small requests in one piece are not copied for each
        while True:
            try:
                self._parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as offer:
                if self._head is None:
                    raise
                rest = rest[offer.args[0] :]
            head, self._head = self._head, None
            self._parser = self._make_parser()
            self._parser.feed_data(head)

    def on_headers_complete(self) -> None:
        """Takes note of the end of the headers."""
        # To CONNECT nothing can be answered by HTTP/1.1: it is no offer, and the taker's to refuse.
        if not self.should_upgrade() or self.get_method() == b"CONNECT":
            self._taker.on_headers_complete()
            return
        self._taker.check_head()
        lines = [b"%b %b HTTP/%b" % (self.get_method(), self._taker.url, self.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in _without_offer(self._taker.headers)]
        self._head = b"\r\n".join([*lines, b"", b""])

    def on_message_complete(self) -> None:
        """Takes note of the end of a request, which for one with an offer is still to come."""
        if self._head is None:
            self._taker.on_message_complete()

    def get_method(self) -> bytes:
        """Returns the method of a request whose headers are complete."""
        return self._parser.get_method()

    def get_http_version(self) -> str:
        """Returns the version of a request whose headers are complete, such as 1.1."""
        return self._parser.get_http_version()

    def should_keep_alive(self) -> bool:
        """Whether the connection may be kept after a request whose headers are complete."""
        return self._parser.should_keep_alive()

    def should_upgrade(self) -> bool:
        """Whether a request asks for another protocol; only for CONNECT this is ever seen outside."""
        return self._parser.should_upgrade()
