"""A gRPC server with what every one of ours has: limits, interceptors, health, reflection and an orderly end."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from headrace.contract.clock import Clock
from headrace.contract.errors import Draining, StartupError
from headrace.services.address import (
    Address,
    TcpAddress,
    UnixAddress,
    clear_for_listening,
    explain_bind_failure,
)
from headrace.services.call_frame import CallFrames
from headrace.services.channel_options import ServerLimits, server_options
from headrace.services.exposure import check_listener
from headrace.services.gatekeeper import Gatekeeper
from headrace.services.in_flight import InFlightCalls
from headrace.services.interceptors import CallInterceptor
from headrace.services.log import Event, logger
from headrace.services.server_tls import ServerTls
from headrace.services.telemetry.call_meter import CallMeter

if TYPE_CHECKING:  # an import of OpenTelemetry, which is not installed everywhere
    from headrace.services.telemetry.spans import Tracing

_END_GRACE_S = 1.0
"""How long calls that the server ends may take to say so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainTimes:
    """How long a server takes to go away."""

    propagation_s: float
    """How long late calls are still served after health says NOT_SERVING, while load balancers learn of it."""
    timeout_s: float
    """How long running calls may go on after new ones are refused."""


class GrpcServer:
    """One server of this process. Create it on the event loop that runs it.

    Call `add` for each service, then `start`, then `set_serving`; end with `drain` or `stop`.
    """

    def __init__(
        self,
        limits: ServerLimits,
        *,
        allows_remote_plaintext: bool = False,
        tls: ServerTls | None = None,
        gatekeeper: Gatekeeper | None = None,
        has_reflection: bool = True,
        clock: Clock | None = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        self.calls = InFlightCalls()
        """The calls being answered."""
        self.call_meter = CallMeter()
        """Those that were. For reading."""
        self.departure = asyncio.Event()
        """Set when it begins to go away."""
        self._allows_remote_plaintext = allows_remote_plaintext
        self._tls = tls
        self._has_reflection = has_reflection
        self._is_stopped = False
        self._service_names: list[str] = []
        self._health = health.aio.HealthServicer()
        self.frames = CallFrames(self.calls, self.call_meter, gatekeeper=gatekeeper, clock=clock, tracing=tracing)
        """What every call runs in."""
        self._server = grpc.aio.server(interceptors=[CallInterceptor(self.frames)], options=server_options(limits))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def add(self, service: ServiceDescriptor, register: Callable[[grpc.aio.Server], None]) -> None:
        """Adds a service; `register` is given the server, for the generated `add_..._to_server`."""
        self._service_names.append(service.full_name)
        register(self._server)

    async def start(self, addresses: Sequence[Address]) -> tuple[str, ...]:
        """Listens, with every service NOT_SERVING, and returns the addresses with the ports that were chosen.

        Raises:
            StartupError: an address is taken, not of this machine, or open to others without encryption.
        """
        await self.set_serving(is_serving=False)
        if self._has_reflection:
            names = [*self._service_names, health.SERVICE_NAME, reflection.SERVICE_NAME]
            reflection.enable_server_reflection(names, self._server)
        bound = tuple(self._bind(address) for address in addresses)
        await self._server.start()
        logger().info(Event.SERVER_STARTED, addresses=bound)
        return bound

    async def set_serving(self, *, is_serving: bool) -> None:
        """Tells health checks, per service and overall, whether to send calls here. Without effect in a drain."""
        status = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._service_names):
            await self._health.set(name, status)

    async def drain(self, times: DrainTimes, *, refuse: Callable[[], None], hurry: asyncio.Event) -> None:
        """Goes away without failing an accepted call.

        Health says NOT_SERVING first; calls are served as before for the
        propagation time; then `refuse` makes the application refuse new ones
        with UNAVAILABLE, and the running ones may end. What is left then is
        ended with UNAVAILABLE, or ABORTED if it has sent messages. `hurry` cuts
        all waiting short.
        """
        logger().info(Event.DRAIN_STARTED, in_flight_count=self.calls.count)
        await self._health.enter_graceful_shutdown()
        self.departure.set()
        await _first_of(hurry.wait(), timeout_s=times.propagation_s)
        refuse()
        logger().info(Event.NEW_CALLS_REFUSED, in_flight_count=self.calls.count)
        await _first_of(self.calls.wait_idle(), hurry.wait(), timeout_s=times.timeout_s)
        logger().info(Event.DRAIN_ENDED, in_flight_count=self.calls.count)
        await self.stop()

    async def stop(self) -> None:
        """Ends every call and closes the addresses. Safe to repeat."""
        self.calls.end_all(Draining("the server stopped before the call had ended", retry_after_s=1.0))
        await _first_of(self.calls.wait_told(observers=False), timeout_s=_END_GRACE_S)
        # Watches last: their callers learn from them that the server goes.
        self.calls.end_observers(Draining("the server stopped", retry_after_s=1.0))
        await _first_of(self.calls.wait_told(observers=True), timeout_s=_END_GRACE_S)
        await self._server.stop(grace=None)
        if not self._is_stopped:
            self._is_stopped = True
            logger().info(Event.SERVER_STOPPED)

    def _bind(self, address: Address) -> str:
        check_listener(address, self._tls, allows_remote_plaintext=self._allows_remote_plaintext)
        clear_for_listening(address)
        try:
            if self._tls is None or isinstance(address, UnixAddress):
                port = self._server.add_insecure_port(str(address))
            else:
                port = self._server.add_secure_port(str(address), self._tls.grpc_credentials())
        except RuntimeError as error:
            raise StartupError(f"cannot listen on {address}: {explain_bind_failure(address)}") from error
        match address:
            case TcpAddress(host=host):
                return str(TcpAddress(host, port))
            case UnixAddress():
                return str(address)


async def _first_of(*awaitables: Awaitable[object], timeout_s: float) -> None:
    """Waits until one is done or the time is over, and cancels the others."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
