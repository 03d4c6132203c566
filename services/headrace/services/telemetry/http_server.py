"""The HTTP server that answers scrapes, with or without TLS: a thread for each, a few at a time, and none for long."""

import math
import socket
import ssl
import time
from contextlib import suppress
from socketserver import ThreadingMixIn
from threading import Lock
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from headrace.services.address import TcpAddress

IDLE_TIMEOUT_S: Final = 10.0
"""How long a scraper may say nothing, in its handshake too."""

SCRAPE_TIMEOUT_S: Final = 20.0
"""How long a connection may take in all, trickled or not. Prometheus waits for ten seconds unless it is told to."""

SCRAPE_LIMIT: Final = 64
"""Most connections at a time, since each has a thread and may bring megabytes of headers; more are closed at once."""


class MetricsServer(ThreadingMixIn, WSGIServer):
    """Listens when it is made; `serve_forever` answers."""

    daemon_threads = True
    scrape_timeout_s = SCRAPE_TIMEOUT_S
    scrape_limit = SCRAPE_LIMIT

    def __init__(self, address: TcpAddress, context: ssl.SSLContext | None) -> None:
        """Listens.

        Raises:
            OSError: the address is taken, or not of this machine.
        """
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self._context = context
        self._ends_at_s: dict[socket.socket, float] = {}
        self._lock = Lock()
        super().__init__((address.host, address.port), _QuietHandler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Takes a connection. Its handshake is made by its own thread, since one that stalls must not stop others."""
        connection, peer = super().get_request()
        connection.settimeout(IDLE_TIMEOUT_S)
        if self._context is None:
            return connection, peer
        return self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), peer

    def verify_request(self, request: Any, client_address: object) -> bool:  # noqa: ANN401  # a plain socket or TLS's
        """Returns whether there is room for a connection, and takes note of when it has to be over."""
        del client_address
        with self._lock:
            has_room = len(self._ends_at_s) < self.scrape_limit
            if has_room:
                self._ends_at_s[request] = time.monotonic() + self.scrape_timeout_s
        return has_room

    def service_actions(self) -> None:
        """Ends what takes too long; `serve_forever` calls it twice a second and after each connection.

        The timeout of a socket is from one byte to the next, so a byte now and then would keep a thread forever.
        """
        now_s = time.monotonic()
        with self._lock:
            for connection in [each for each, ends_at_s in self._ends_at_s.items() if ends_at_s <= now_s]:
                # Its thread wakes up and closes it, which waits for the lock, so nobody else has its number by now.
                # TLS is left out of it: the thread may be in the middle of that.
                with suppress(OSError):
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
                # Once is enough.
                self._ends_at_s[connection] = math.inf

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401  # as above
        """Closes a connection, and makes room for another."""
        with self._lock:
            self._ends_at_s.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing of connections that fail, such as one without TLS: the scraper sees it, and knows more."""


class _QuietHandler(WSGIRequestHandler):
    """Writes no line for each scrape."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # as the parent has it
        """Drops a line."""
