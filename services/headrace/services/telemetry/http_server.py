"""The HTTP server that answers scrapes, with or without TLS: a thread for each, and none that waits forever."""

import socket
import ssl
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from headrace.services.address import TcpAddress

IDLE_TIMEOUT_S = 10.0
"""How long a scraper may say nothing, in its handshake too."""


class MetricsServer(ThreadingMixIn, WSGIServer):
    """Listens when it is made; `serve_forever` answers."""

    daemon_threads = True

    def __init__(self, address: TcpAddress, context: ssl.SSLContext | None) -> None:
        """Listens.

        Raises:
            OSError: the address is taken, or not of this machine.
        """
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self._context = context
        super().__init__((address.host, address.port), _QuietHandler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Takes a connection. Its handshake is made by its own thread, since one that stalls must not stop others."""
        connection, peer = super().get_request()
        connection.settimeout(IDLE_TIMEOUT_S)
        if self._context is None:
            return connection, peer
        return self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), peer

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing of connections that fail, such as one without TLS: the scraper sees it, and knows more."""


class _QuietHandler(WSGIRequestHandler):
    """Writes no line for each scrape."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # as the parent has it
        """Drops a line."""
