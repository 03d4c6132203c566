"""Answers of open length for callers of HTTP/1.0, which knows no chunks: they end with the connection."""

from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent


def send_without_chunks(cycle: RequestResponseCycle) -> None:
    """Has the answer to a request sent in no chunks."""
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
