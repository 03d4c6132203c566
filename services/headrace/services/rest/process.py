"""`headrace rest`: a process that answers HTTP and asks a router over gRPC."""

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import uvicorn

from headrace.contract.errors import StartupError
from headrace.services import event_loop
from headrace.services.address import Address, TcpAddress, UnixAddress, clear_for_listening
from headrace.services.child_process import end_with_parent
from headrace.services.exposure import check_listener
from headrace.services.grpc_poller import considerate_poller
from headrace.services.log import Event, configure, logger
from headrace.services.rest.app import build_app
from headrace.services.rest.http_protocol import bounded_protocol
from headrace.services.rest.router_link import RouterLink
from headrace.services.rest.sidecar import Limits, Sidecar
from headrace.services.server_tls import ServerTls
from headrace.services.settings import RestSettings
from headrace.services.settings_loader import load_settings
from headrace.services.shutdown import Shutdown
from headrace.services.telemetry.endpoint import serve_metrics
from headrace.services.telemetry.http_metrics import HTTP_METRICS, read_http
from headrace.services.telemetry.tracing import trace_process

if TYPE_CHECKING:  # an import of OpenTelemetry, which is not installed everywhere
    from headrace.services.telemetry.spans import Tracing

_MESSAGE_ROOM_BYTES = 2**20
"""What a gRPC message may be larger than the body that it was made of."""

_BACKLOG = 2048


def main(arguments: Sequence[str]) -> int:
    """Runs `headrace rest` until it is told to end; returns the process's exit status."""
    settings = load_settings(RestSettings, arguments, os.environ, program="headrace rest")
    configure(level=settings.log_level, style=settings.log_format)
    return event_loop.run(run_sidecar(settings))


class HttpServer(uvicorn.Server):
    """uvicorn's server without its own way to take signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to `Shutdown`."""
        yield

    async def wait_started(self) -> None:
        """Waits until the server listens."""
        while not self.started:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.01)


async def run_sidecar(settings: RestSettings) -> int:
    """Serves until a signal comes, then lets requests end.

    Raises:
        StartupError: an address is taken, not of this machine, or would be used without encryption.
    """
    async with trace_process(settings, default_name="headrace-rest") as tracing:
        with considerate_poller():
            return await _run(settings, tracing)


async def _run(settings: RestSettings, tracing: "Tracing | None") -> int:
    shutdown = Shutdown()
    if settings.exit_with_parent:
        end_with_parent(shutdown)
    tls = ServerTls(settings.server_tls_files) if settings.server_tls_files else None
    link = RouterLink(
        settings.router_address,
        message_size_limit_bytes=settings.body_size_limit + _MESSAGE_ROOM_BYTES,
        security=settings.router_security,
        multiplexes=settings.multiplexes,
    )
    sidecar = Sidecar(
        link=link,
        limits=Limits(
            body_size_bytes=settings.body_size_limit,
            read_timeout_s=settings.read_timeout_s,
            deadline_s=settings.deadline_s,
            client_batch_count=settings.client_batch_limit,
        ),
        started_at_s=int(time.time()),
        is_ending=shutdown.requested,
        default_pooling=settings.embedding_pooling,
        tracing=tracing,
    )
    metrics = serve_metrics(
        settings.metrics_listen_address,
        HTTP_METRICS,
        [partial(read_http, sidecar.meter)],
        tls=tls,
        allows_remote_plaintext=settings.insecure,
    )
    async with metrics:
        return await _serve(settings, sidecar, shutdown, tls)


async def _serve(settings: RestSettings, sidecar: Sidecar, shutdown: Shutdown, tls: ServerTls | None) -> int:
    link = sidecar.link
    check_listener(settings.listen_address, tls, allows_remote_plaintext=settings.insecure)
    listener, address = listen(settings.listen_address)
    is_encrypted = tls is not None and isinstance(settings.listen_address, TcpAddress)
    server = make_server(sidecar, settings, tls if is_encrypted else None)
    try:
        serving = asyncio.ensure_future(server.serve([listener]))
        await asyncio.wait([serving, asyncio.ensure_future(server.wait_started())], return_when=asyncio.FIRST_COMPLETED)
        logger().info(Event.SERVER_STARTED, addresses=(address,))
        sys.stdout.write(f"headrace rest listens on {address} for {link.target}\n")
        sys.stdout.flush()
        await _until_told(shutdown, serving, settings.propagation_s)
        server.should_exit = True
        hurrying = asyncio.ensure_future(shutdown.wait_hurry())
        await asyncio.wait([serving, hurrying], return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        server.force_exit = not serving.done()
        await serving
    finally:
        listener.close()
        await link.close()
        logger().info(Event.SERVER_STOPPED)
    return 0


async def _until_told(shutdown: Shutdown, serving: "asyncio.Future[None]", propagation_s: float) -> None:
    """Waits for the first signal, and then until load balancers have learned of it."""
    ending = asyncio.ensure_future(shutdown.wait())
    await asyncio.wait([ending, serving], return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    if not serving.done():
        logger().info(Event.DRAIN_STARTED)
        hurrying = asyncio.ensure_future(shutdown.wait_hurry())
        await asyncio.wait([hurrying], timeout=propagation_s)
        hurrying.cancel()


def make_server(sidecar: Sidecar, settings: RestSettings, tls: ServerTls | None = None) -> HttpServer:
    """Returns the HTTP server, not yet listening."""
    return HttpServer(
        uvicorn.Config(
            build_app(sidecar, cors_origins=settings.cors_allow_origin, with_ui=settings.ui),
            http=bounded_protocol(settings.read_timeout_s),
            loop="none",
            lifespan="off",
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            ssl_context_factory=(lambda _config, _default: tls.ssl_context()) if tls else None,
            timeout_graceful_shutdown=max(1, round(settings.drain_timeout_s)),
        )
    )


def listen(address: Address) -> tuple[socket.socket, str]:
    """Returns a listening socket, and its address with the port that was chosen.

    Raises:
        StartupError: the address is taken, or not of this machine.
    """
    clear_for_listening(address)
    try:
        match address:
            case UnixAddress(path):
                listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                listener.bind(str(path))
                listener.listen(_BACKLOG)
                return listener, str(address)
            case TcpAddress(host, port):
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
                # Connections inherit it. Without it the first event would wait until the status was acknowledged;
                # asyncio sets it by itself only for sockets that name their protocol, which these do not.
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return listener, str(TcpAddress(host, listener.getsockname()[1]))
    except OSError as error:
        raise StartupError(f"cannot listen on {address}: {error.strerror or error}") from error
