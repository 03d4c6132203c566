"""The Prometheus endpoint of a process: HTTP, on a thread of its own."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import asynccontextmanager
from functools import partial
from threading import Thread

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.core import Metric as Family

from headrace.contract.errors import StartupError
from headrace.services.address import TcpAddress
from headrace.services.exposure import check_listener
from headrace.services.log import Event, logger
from headrace.services.server_tls import ServerTls
from headrace.services.telemetry.http_server import MetricsServer
from headrace.services.telemetry.loop_lag import LoopLagProbe
from headrace.services.telemetry.metric import Metric, Reading, empty_family, families_of
from headrace.services.telemetry.process_metrics import LOOP_METRICS, read_loop

READ_TIMEOUT_S = 5.0
"""A scrape fails when the event loop does not answer for so long: an operator had better see that."""

Source = Callable[[], Iterable[Reading]]
"""Tells the values of some metrics; called on the event loop."""


class LoopCollector:
    """Reads the counters of an event loop when, and only when, Prometheus asks.

    The counters are plain numbers that one event loop writes without a lock, so
    they are read there, in one go; the text is made of copies on the thread of
    the scrape.
    """

    def __init__(self, metrics: Sequence[Metric], sources: Sequence[Source]) -> None:
        """Takes the metrics that the sources may tell of. Create it on the event loop."""
        self._metrics = tuple(metrics)
        self._sources = tuple(sources)
        self._loop = asyncio.get_running_loop()

    def describe(self) -> list[Family]:
        """Returns every metric without values, so that the registry finds names that are taken twice."""
        return [empty_family(metric) for metric in self._metrics]

    def collect(self) -> Iterator[Family]:
        """Yields the values as they are now.

        Raises:
            TimeoutError: the event loop is busy with something else.
        """
        reading = asyncio.run_coroutine_threadsafe(self._read(), self._loop)
        try:
            yield from families_of(reading.result(READ_TIMEOUT_S))
        except FutureTimeoutError as error:
            reading.cancel()
            raise TimeoutError(f"the event loop did not answer for {READ_TIMEOUT_S:g} s") from error

    async def _read(self) -> list[Reading]:
        return [reading for source in self._sources for reading in source()]


class MetricsEndpoint:
    """Answers scrapes until closed."""

    def __init__(self, server: MetricsServer, thread: Thread, address: str) -> None:
        self._server = server
        self._thread = thread
        self.address = address
        """Where it listens, with the port that was chosen."""

    @classmethod
    def start(
        cls, address: TcpAddress, metrics: Sequence[Metric], sources: Sequence[Source], tls: ServerTls | None
    ) -> "MetricsEndpoint":
        """Listens and returns. Call on the event loop that the sources belong to.

        Raises:
            StartupError: the address cannot be listened on.
        """
        registry = CollectorRegistry(auto_describe=False)
        registry.register(LoopCollector(metrics, sources))
        ProcessCollector(registry=registry)
        try:
            server = MetricsServer(address, tls.ssl_context() if tls else None)
        except OSError as error:
            raise StartupError(f"cannot serve metrics on {address}: {error.strerror or error}") from error
        server.set_app(make_wsgi_app(registry))
        thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
        thread.start()
        bound = str(TcpAddress(address.host, server.server_port))
        logger().info(Event.METRICS_SERVED, address=bound)
        return cls(server, thread, bound)

    async def close(self) -> None:
        """Stops listening; a scrape that runs is not waited for."""
        await asyncio.get_running_loop().run_in_executor(None, self._stop)

    def _stop(self) -> None:
        # Takes until the server's next look, which would hold the event loop up.
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@asynccontextmanager
async def serve_metrics(
    address: TcpAddress | None,
    metrics: Sequence[Metric],
    sources: Sequence[Source],
    *,
    tls: ServerTls | None = None,
    allows_remote_plaintext: bool = False,
) -> AsyncIterator[MetricsEndpoint | None]:
    """Answers scrapes meanwhile, with what is true of every process beside the given; without an address, nothing.

    Raises:
        StartupError: the address cannot be listened on, or is open to others without encryption.
    """
    if address is None:
        yield None
        return
    check_listener(address, tls, allows_remote_plaintext=allows_remote_plaintext)
    probe = LoopLagProbe()
    endpoint = MetricsEndpoint.start(address, (*LOOP_METRICS, *metrics), (partial(read_loop, probe), *sources), tls)
    probing = asyncio.create_task(probe.run(), name="event loop lag")
    try:
        yield endpoint
    finally:
        probing.cancel()
        await endpoint.close()
