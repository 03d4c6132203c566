"""The gRPC calls that the sidecar makes, each for one HTTP request."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc.aio
from google.protobuf.message import Message as ProtoMessage
from grpc_health.v1 import health_pb2

from headrace.client import calls
from headrace.client.aio_channel import AsyncChannel
from headrace.client.aio_multiplexer import ResponseStream
from headrace.client.calls import Call, ResponseT, ResultT, StreamCall
from headrace.client.channel import Connection
from headrace.client.operations import Adapter, Model
from headrace.client.options import CallOptions
from headrace.contract.errors import HeadraceError, StartupError
from headrace.services.address import parse_address
from headrace.services.channel_tls import ChannelSecurity
from headrace.services.log import Event, logger
from headrace.services.watched_files import WatchedFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class CallContext:
    """What an HTTP request says of the calls made for it."""

    request_id: str
    """Of the HTTP request; returned to its caller."""
    is_own_id: bool
    """Whether the sidecar made the id, so that no other request can have it."""
    deadline_s: float
    metadata: dict[str, str] = field(default_factory=dict)

    def options(self) -> CallOptions:
        """Returns the options of a call."""
        return {"deadline_s": self.deadline_s, "metadata": self.metadata}


class RouterLink:
    """A connection to one or several routers, opened by the first call."""

    def __init__(
        self,
        targets: Sequence[str],
        *,
        message_size_limit_bytes: int,
        security: ChannelSecurity | None = None,
        multiplexes: bool = False,
    ) -> None:
        """Reads the certificates. Without a `security` nothing but this machine is reached.

        `multiplexes` says whether generation streams share calls.

        Raises:
            StartupError: a certificate cannot be read, or a connection would go over a network in plain text.
        """
        self._targets = targets
        self._addresses = [parse_address(target) for target in targets]
        self._message_size_limit_bytes = message_size_limit_bytes
        self._multiplexes = multiplexes
        self._security = security or ChannelSecurity()
        self._watched = WatchedFiles(self._security.tls.paths if self._security.tls else ())
        self._retired: list[AsyncChannel] = []
        channel = self._renew()
        if channel is None:
            raise StartupError("the certificates for the routers are being replaced; start again")
        self._channel = channel

    @property
    def target(self) -> str:
        """What the link connects to, as gRPC resolves it."""
        return self._channel.target

    async def unary(self, call: Call[ResponseT, ResultT], context: CallContext) -> ResultT:
        """Makes a call and returns its answer.

        Raises:
            HeadraceError: the call failed.
        """
        await self._close_idle()
        return await self._newest().unary(call, context.options())

    def stream(self, call: StreamCall, context: CallContext) -> ResponseStream:
        """Starts a generation stream, whose messages stay as they are: converting each would cost more than reading."""
        return self._newest().generation(call, context.options())

    def watch(
        self, call: Call[ResponseT, ResultT], context: CallContext
    ) -> grpc.aio.UnaryStreamCall[ProtoMessage, ResponseT]:
        """Starts a stream of reports; each is read by the call."""
        return self._channel.responses(call, context.options())

    async def models(self, context: CallContext) -> tuple[Model, ...]:
        """Returns the served models.

        Raises:
            HeadraceError: the call failed.
        """
        return await self.unary(calls.list_models(), context)

    async def model(self, name: str, context: CallContext) -> Model:
        """Returns one model.

        Raises:
            HeadraceError: the call failed.
        """
        return await self.unary(calls.get_model(name), context)

    async def adapters(self, model: str, context: CallContext) -> tuple[Adapter, ...]:
        """Returns the adapters of a model.

        Raises:
            HeadraceError: the call failed.
        """
        return await self.unary(calls.list_adapters(model), context)

    async def is_serving(self, context: CallContext) -> bool:
        """Whether the router says that it is well; False if it says nothing."""
        call = Call(
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest(),
            health_pb2.HealthCheckResponse,
            lambda response: response.status == health_pb2.HealthCheckResponse.SERVING,
        )
        try:
            return await self.unary(call, context)
        except HeadraceError:
            return False

    async def close(self) -> None:
        """Ends every call and closes the connections."""
        for channel in (self._channel, *self._retired):
            await channel.close()

    def _newest(self) -> AsyncChannel:
        """Returns a channel with the certificates as they are now; calls under way end on the one they have."""
        try:
            renewed = self._renew()
        except StartupError as error:
            logger().error(Event.CERTIFICATE_REFUSED, detail=error.message)
            renewed = None
        if renewed is not None:
            logger().info(Event.CERTIFICATE_RENEWED, path=str(self._security.tls.ca) if self._security.tls else "")
            self._channel.retire()
            self._retired.append(self._channel)
            self._channel = renewed
        return self._channel

    async def _close_idle(self) -> None:
        """Closes channels with old certificates when their last call has ended."""
        idle = [channel for channel in self._retired if channel.is_idle]
        for channel in idle:
            self._retired.remove(channel)
            await channel.close()

    def _renew(self) -> AsyncChannel | None:
        return self._watched.load_if_changed(self._make_channel)

    def _make_channel(self) -> AsyncChannel:
        connection = Connection.to(
            self._targets[0] if len(self._targets) == 1 else self._targets,
            deadline_s=None,
            wait_for_ready=False,
            metadata=None,
            credentials=self._security.credentials(self._addresses),
            round_robin=None,
            message_size_limit_bytes=self._message_size_limit_bytes,
            # Whether and when to come back is for the HTTP client to decide: it gets the 429 and its Retry-After.
            channel_options=(("grpc.enable_retries", 0),),
        )
        return AsyncChannel(connection, multiplexes=self._multiplexes)
