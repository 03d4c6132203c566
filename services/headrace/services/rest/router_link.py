"""The gRPC calls that the sidecar makes, each for one HTTP request."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc.aio
from google.protobuf.message import Message as ProtoMessage
from grpc_health.v1 import health_pb2

from headrace.client import calls
from headrace.client.aio_channel import AsyncChannel
from headrace.client.calls import Call, ResponseT, ResultT, StreamCall
from headrace.client.channel import Connection
from headrace.client.operations import Adapter, Model
from headrace.client.options import CallOptions
from headrace.contract.errors import HeadraceError
from headrace.v1.generate_service_pb2 import GenerateStreamResponse

StreamUnderWay = grpc.aio.UnaryStreamCall[ProtoMessage, GenerateStreamResponse]


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

    def __init__(self, targets: Sequence[str], *, message_size_limit_bytes: int) -> None:
        connection = Connection.to(
            targets[0] if len(targets) == 1 else targets,
            deadline_s=None,
            wait_for_ready=False,
            metadata=None,
            credentials=None,
            round_robin=None,
            message_size_limit_bytes=message_size_limit_bytes,
            # Whether and when to come back is for the HTTP client to decide: it gets the 429 and its Retry-After.
            channel_options=(("grpc.enable_retries", 0),),
        )
        self._channel = AsyncChannel(connection)

    @property
    def target(self) -> str:
        """What the link connects to, as gRPC resolves it."""
        return self._channel.target

    async def unary(self, call: Call[ResponseT, ResultT], context: CallContext) -> ResultT:
        """Makes a call and returns its answer.

        Raises:
            HeadraceError: the call failed.
        """
        return await self._channel.unary(call, context.options())

    def stream(self, call: StreamCall, context: CallContext) -> StreamUnderWay:
        """Starts a generation stream, whose messages stay as they are: converting each would cost more than reading."""
        return self._channel.responses(call, context.options())

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
        await self._channel.close()
