"""The answers to what is no request, or not one that is to be had: sent by the connection itself, and its last."""

from typing import Final

from headrace.services.rest.wire_count import HEAD_LIMIT_BYTES


def _answer(status: bytes, text: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (
        status,
        len(text),
        text,
    )


TOO_LARGE: Final = _answer(
    b"431 Request Header Fields Too Large",
    b"the request line and the headers are larger than the limit of %d bytes" % HEAD_LIMIT_BYTES,
)
TOO_SLOW: Final = _answer(b"408 Request Timeout", b"the request line and the headers took too long to come")
ONE_HOST: Final = _answer(b"400 Bad Request", b"a request must have one header Host, with the name of a host")
"""Asked of HTTP/1.1 (RFC 9112, 3.2): of two, a proxy in front may have believed the other."""
