"""Wraps every handler of a server in the frame that all calls have."""

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, TypeAlias, cast

import grpc
from grpc.aio import ServicerContext

from headrace.services.call_frame import CallFrames
from headrace.services.request_decoding import decode_request

# The edge to grpc: requests and responses are whatever the method's messages are.
_Context = ServicerContext[Any, Any]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Behaviour = Callable[[Any, _Context], Any]
_Decode = Callable[[Any], Any]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler of a server.

    A handler raises errors of the contract and never calls `context.abort`.
    Anything else that it raises is a bug: logged here, and told to the caller as
    INTERNAL with a fixed text.
    """

    def __init__(self, frames: CallFrames) -> None:
        self._frames = frames

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["_Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "_Handler | None":
        """Returns the wrapped handler; None for a method that does not exist."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        deserialize = handler.request_deserializer
        decode: _Decode = _unchanged
        if deserialize is not None:
            # Inside the frame, so that bytes that are no message get a status like every other mistake.
            decode, deserialize = partial(decode_request, deserialize=deserialize, method=method), None
            if handler.request_streaming:
                decode = partial(_decoded, decode=decode)
        if handler.response_streaming:
            behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
            wrapped = self._wrap_stream(method, cast("_Behaviour", behaviour), decode)
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
        else:
            behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
            wrapped = self._wrap_unary(method, cast("_Behaviour", behaviour), decode)
            make = (
                grpc.stream_unary_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_unary_rpc_method_handler
            )
        return make(wrapped, deserialize, handler.response_serializer)

    def _wrap_unary(self, method: str, behaviour: _Behaviour, decode: _Decode) -> _Behaviour:
        async def unary(request: object, context: _Context) -> object:
            async with self._frames.around(method, context) as call:
                self._frames.admit(call, context)
                return await behaviour(decode(request), context)

        return unary

    def _wrap_stream(self, method: str, behaviour: _Behaviour, decode: _Decode) -> _Behaviour:
        async def write_all(request: object, context: _Context) -> None:
            async with self._frames.around(method, context) as call:
                self._frames.admit(call, context)
                responses: AsyncIterator[object] = behaviour(decode(request), context)
                # Closed here and now when the call is cancelled, not by the garbage collector.
                async with aclosing(responses):  # type: ignore[type-var]  # a generator has aclose
                    async for response in responses:
                        await context.write(response)
                        call.message_count += 1

        async def write_itself(request: object, context: _Context) -> None:
            async with self._frames.around(method, context) as call:
                self._frames.admit(call, context)
                await behaviour(decode(request), context)

        return write_all if inspect.isasyncgenfunction(behaviour) else write_itself


async def _decoded(requests: AsyncIterable[Any], decode: _Decode) -> AsyncIterator[Any]:
    async for request in requests:
        yield decode(request)


def _unchanged(request: object) -> object:
    return request
