"""Server-sent events: opens generation streams before the status is sent, then writes events as tokens come."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Protocol

import grpc.aio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from headrace.client.aio_channel import is_task_cancelled
from headrace.client.aio_multiplexer import ResponseStream
from headrace.client.errors import StreamBroken, error_from_rpc
from headrace.contract.errors import HeadraceError
from headrace.services.rest.field_naming import named_after
from headrace.services.rest.piece_writer import PieceWriter, piece_writer
from headrace.services.rest.request_watch import short_way
from headrace.v1 import generate_service_pb2 as pb

MEDIA_TYPE = "text/event-stream"


class EventWriter(Protocol):
    """What one protocol writes for the events of one generation stream; empty bytes write nothing."""

    def started(self, started: pb.GenerationStarted) -> bytes:
        """Returns what opens the stream."""
        ...

    def delta(self, delta: pb.GenerationDelta) -> bytes:
        """Returns what new tokens become."""
        ...

    def finished(self, finished: pb.GenerationFinished) -> bytes:
        """Returns what ends the stream."""
        ...

    def failed(self, error: HeadraceError) -> bytes:
        """Returns what tells that the stream failed."""
        ...


@dataclass(slots=True)
class OpenStream:
    """A generation stream of which `started` has been read."""

    call: ResponseStream
    started: pb.GenerationStarted
    target: str


async def open_stream(call: ResponseStream, target: str) -> OpenStream:
    """Waits until the router has admitted a request and begun with it, so that a refusal can be a status.

    Raises:
        HeadraceError: the request failed.
    """
    try:
        # A call gives the same iterator each time, so what follows is read where this ends.
        first = await anext(aiter(call), None)
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error, target) from error
    except asyncio.CancelledError:
        call.cancel()
        raise
    if not isinstance(first, pb.GenerateStreamResponse):
        raise StreamBroken("the stream ended before it had started")
    return OpenStream(call, first.started, target)


class EventStreamResponse(Response):
    """Writes the events of one or several generation streams, and cancels them when the caller hangs up."""

    media_type = MEDIA_TYPE

    def __init__(
        self,
        streams: Sequence[tuple[OpenStream, EventWriter]],
        *,
        closing: Callable[[], bytes],
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(
            headers={"cache-control": "no-cache", "x-accel-buffering": "no", **headers}, media_type=MEDIA_TYPE
        )
        del self.headers["content-length"]
        self._streams = streams
        self._closing = closing
        self._has_failed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response, as ASGI asks."""
        send_piece = short_way(scope, send)
        watching = asyncio.ensure_future(self._cancel_at_hang_up(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._send_streams(send_piece, piece_writer(scope))
            if not watching.done():
                body = b"" if self._has_failed else self._closing()
                await send({"type": "http.response.body", "body": body, "more_body": False})
        except asyncio.CancelledError:
            # Cancelling a call is reported like the cancellation of the task that reads it.
            if is_task_cancelled() or not watching.done():
                raise
        finally:
            self._cancel()
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _send_streams(self, send: Send, write: PieceWriter) -> None:
        # In tasks of their own even if there is but one: whatever a task waits for wakes it through all its
        # coroutines, and from the server down to here there are some fifteen.
        async with asyncio.TaskGroup() as group:
            for stream, writer in self._streams:
                group.create_task(self._send_stream(stream, writer, send, write))

    async def _send_stream(self, stream: OpenStream, writer: EventWriter, send: Send, write: PieceWriter) -> None:
        is_over = False
        try:
            if opening := writer.started(stream.started):
                await send({"type": "http.response.body", "body": opening, "more_body": True})
            # Iterating is cheaper than `read`, which looks each time whether the call is over.
            async for response in stream.call:
                if response is None:  # what gRPC makes of bytes that are no message
                    break
                if response.HasField("delta"):
                    event = writer.delta(response.delta)
                else:
                    is_over = True
                    event = writer.finished(response.finished)
                if event and not write(event):
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            if not is_over:
                raise StreamBroken("the stream ended without its last event")
        except grpc.aio.AioRpcError as error:
            await self._fail(error_from_rpc(error, stream.target), writer, send)
        except HeadraceError as error:
            await self._fail(error, writer, send)

    async def _fail(self, error: HeadraceError, writer: EventWriter, send: Send) -> None:
        # One error is all that clients read: the other streams of the request end with it.
        if not self._has_failed:
            self._has_failed = True
            await send({"type": "http.response.body", "body": writer.failed(error), "more_body": True})
            self._cancel()

    async def _cancel_at_hang_up(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._cancel()

    def _cancel(self) -> None:
        for stream, _ in self._streams:
            stream.call.cancel()


async def open_all(
    calls: Sequence[ResponseStream], target: str, aliases: Sequence[Mapping[str, str]] = ()
) -> list[OpenStream]:
    """Opens several streams; if one is refused, none goes on.

    `aliases` are what the caller called fields of each; without them errors have the names of `headrace.v1`.

    Raises:
        HeadraceError: a request failed.
    """
    opening = [asyncio.ensure_future(_open_named(call, target, names)) for call, names in zip_longest(calls, aliases)]
    try:
        return list(await asyncio.gather(*opening))
    except BaseException:
        for call in calls:
            call.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        raise


async def _open_named(call: ResponseStream, target: str, aliases: Mapping[str, str] | None) -> OpenStream:
    with named_after((), aliases):
        return await open_stream(call, target)
