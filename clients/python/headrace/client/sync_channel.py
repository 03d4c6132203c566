"""A gRPC channel for threads, and the calls on it."""

import grpc

from headrace.client.calls import Call, ResponseT, ResultT, serialize
from headrace.client.channel import CallArguments, Connection
from headrace.client.errors import error_from_rpc
from headrace.client.options import CallOptions
from headrace.client.sync_stream import StreamingCall


class SyncChannel:
    """Connects at its first call."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._channel = _open(connection)
        self._is_closed = False

    @property
    def target(self) -> str:
        """What the channel connects to, as gRPC resolves it."""
        return self._connection.target

    def unary(self, call: Call[ResponseT, ResultT], options: CallOptions) -> ResultT:
        """Makes a call and returns its answer.

        Raises:
            HeadraceError: the call failed.
            RuntimeError: the channel is closed.
        """
        span = self._connection.begin_span(call.path, call.request)
        if span is None:
            return call.read(self._ask(call, self._connection.call_arguments(options, call.request_id)))
        with span:
            response = self._ask(call, self._connection.call_arguments(options, call.request_id, span))
            span.note_answer(response)
            return call.read(response)

    def _ask(self, call: Call[ResponseT, ResultT], arguments: CallArguments) -> ResponseT:
        method = self._get().unary_unary(call.path, serialize, call.response_type.FromString)
        try:
            return method(
                call.request,
                timeout=arguments.timeout_s,
                metadata=arguments.metadata,
                wait_for_ready=arguments.wait_for_ready,
            )
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.target) from error

    def responses(self, call: Call[ResponseT, ResultT], options: CallOptions) -> StreamingCall[ResponseT]:
        """Makes a call and returns its stream.

        Raises:
            RuntimeError: the channel is closed.
        """
        span = self._connection.begin_span(call.path, call.request)
        arguments = self._connection.call_arguments(options, call.request_id, span)
        method = self._get().unary_stream(call.path, serialize, call.response_type.FromString)
        under_way = method(
            call.request,
            timeout=arguments.timeout_s,
            metadata=arguments.metadata,
            wait_for_ready=arguments.wait_for_ready,
        )
        if span is not None:
            # The stubs leave this out.
            under_way.add_done_callback(lambda ended: span.end_stream(ended.code()))  # type: ignore[attr-defined]
        return under_way

    def close(self) -> None:
        """Ends every call and closes the connections. Safe to repeat."""
        self._is_closed = True
        self._channel.close()

    def _get(self) -> grpc.Channel:
        # gRPC's own error for a closed channel is less clear.
        if self._is_closed:
            raise RuntimeError("the client is closed")
        return self._channel


def _open(connection: Connection) -> grpc.Channel:
    options = connection.channel_options
    if connection.credentials is None:
        return grpc.insecure_channel(connection.target, options)
    return grpc.secure_channel(connection.target, connection.credentials, options)
