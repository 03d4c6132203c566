"""A gRPC channel for one event loop, and the calls on it."""

import asyncio
import weakref
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from google.protobuf.message import Message

from headrace.client.aio_multiplexer import MultiplexedCall, Multiplexer, ResponseStream
from headrace.client.calls import GENERATE_MULTIPLEXED, Call, ResponseT, ResultT, StreamCall, serialize
from headrace.client.channel import CallArguments, Connection
from headrace.client.errors import error_from_rpc
from headrace.client.options import CallOptions
from headrace.v1 import generate_service_pb2 as generate_pb

if TYPE_CHECKING:  # an import of OpenTelemetry, which only some callers have
    from headrace.client.tracing import ClientSpan


class AsyncChannel:
    """Opened by its first call, in the loop of that call: so a client may be made before there is a loop."""

    def __init__(self, connection: Connection, *, multiplexes: bool = False) -> None:
        """Takes whether generation streams share calls."""
        self._connection = connection
        self._multiplexer = Multiplexer(self._begin_shared, retries=connection.retries) if multiplexes else None
        self._channel: grpc.aio.Channel | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False
        # gRPC finds the calls to end by looking through the stacks of all tasks, and not every version finds them.
        self._calls: weakref.WeakSet[grpc.aio.Call] = weakref.WeakSet()
        self._endings: set[asyncio.Future[None]] = set()
        """Spans of streams that are over, on their way to their end."""

    @property
    def target(self) -> str:
        """What the channel connects to, as gRPC resolves it."""
        return self._connection.target

    @property
    def is_idle(self) -> bool:
        """Whether no call is under way."""
        return all(call.done() for call in self._calls)

    async def unary(self, call: Call[ResponseT, ResultT], options: CallOptions) -> ResultT:
        """Makes a call and returns its answer.

        Raises:
            HeadraceError: the call failed.
            RuntimeError: the channel is closed, or was closed during the call.
        """
        span = self._connection.begin_span(call.path, call.request)
        if span is None:
            return call.read(await self._ask(call, self._connection.call_arguments(options, call.request_id)))
        with span:
            response = await self._ask(call, self._connection.call_arguments(options, call.request_id, span))
            span.note_answer(response)
            return call.read(response)

    async def _ask(self, call: Call[ResponseT, ResultT], arguments: CallArguments) -> ResponseT:
        method = self._open().unary_unary(call.path, serialize, call.response_type.FromString)
        under_way = method(
            call.request,
            timeout=arguments.timeout_s,
            metadata=arguments.metadata,
            wait_for_ready=arguments.wait_for_ready,
        )
        self._calls.add(under_way)
        try:
            return await under_way
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, self.target) from error
        except asyncio.CancelledError as error:
            if is_task_cancelled():
                raise
            raise RuntimeError("the client was closed during the call") from error

    def responses(
        self, call: Call[ResponseT, ResultT], options: CallOptions
    ) -> grpc.aio.UnaryStreamCall[Message, ResponseT]:
        """Makes a call and returns its stream.

        Raises:
            RuntimeError: the channel is closed.
        """
        span = self._connection.begin_span(call.path, call.request)
        arguments = self._connection.call_arguments(options, call.request_id, span)
        method = self._open().unary_stream(call.path, serialize, call.response_type.FromString)
        under_way = method(
            call.request,
            timeout=arguments.timeout_s,
            metadata=arguments.metadata,
            wait_for_ready=arguments.wait_for_ready,
        )
        self._calls.add(under_way)
        if span is not None:
            under_way.add_done_callback(lambda _: self._end_span(span, under_way))
        return under_way

    def generation(self, call: StreamCall, options: CallOptions) -> ResponseStream:
        """Begins a generation stream, on a call of its own or on one that it shares.

        Raises:
            RuntimeError: the channel is closed.
        """
        if self._multiplexer is None:
            return self.responses(call, options)
        self._open()
        assert isinstance(call.request, generate_pb.GenerateRequest), "the request of every generation stream"
        span = self._connection.begin_span(call.path, call.request)
        arguments = self._connection.call_arguments(options, call.request_id, span)
        return self._multiplexer.stream(call.request, arguments, None if span is None else span.end_stream)

    def retire(self) -> None:
        """Lets what is under way end; a channel that takes nothing new is idle after that."""
        if self._multiplexer is not None:
            self._multiplexer.retire()

    async def close(self) -> None:
        """Ends every call and closes the connections. Safe to repeat."""
        self._is_closed = True
        for call in list(self._calls):
            call.cancel()
        if self._multiplexer is not None:
            await self._multiplexer.close()
        await asyncio.gather(*self._endings)
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    def _begin_shared(
        self, requests: AsyncIterator[generate_pb.GenerateMultiplexedRequest], *, wait_for_ready: bool
    ) -> MultiplexedCall:
        method = self._open().stream_stream(
            GENERATE_MULTIPLEXED, serialize, generate_pb.GenerateMultiplexedResponse.FromString
        )
        # For proxies on the way: the server reads the metadata of each generation.
        under_way = method(requests, metadata=self._connection.metadata, wait_for_ready=wait_for_ready)
        self._calls.add(under_way)
        return under_way

    def _end_span(self, span: "ClientSpan", call: grpc.aio.Call) -> None:
        async def end() -> None:
            span.end_stream(await call.code())

        ending = asyncio.ensure_future(end())
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    def _open(self) -> grpc.aio.Channel:
        if self._is_closed:
            raise RuntimeError("the client is closed")
        loop = asyncio.get_running_loop()
        if self._channel is None:
            self._loop = loop
            self._channel = _open(self._connection)
        elif self._loop is not loop:
            raise RuntimeError("the client belongs to another event loop; make one client for each loop")
        return self._channel


def is_task_cancelled() -> bool:
    """Whether a CancelledError is meant for this task: gRPC says it the same way when only the call was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _open(connection: Connection) -> grpc.aio.Channel:
    options = connection.channel_options
    if connection.credentials is None:
        return grpc.aio.insecure_channel(connection.target, options)
    return grpc.aio.secure_channel(connection.target, connection.credentials, options)
