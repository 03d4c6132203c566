"""Many generation streams over few calls: what many readers on one event loop save over a call for each."""

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol, Self, TypeAlias

import grpc
import grpc.aio

from headrace.client.channel import CallArguments
from headrace.client.errors import STATUS_DETAILS_KEY, read_details
from headrace.client.service_config import (
    ATTEMPT_LIMIT,
    BACKOFF_FACTOR,
    FIRST_BACKOFF_S,
    LONGEST_BACKOFF_S,
    RETRYABLE_CODES,
)
from headrace.v1 import generate_service_pb2 as pb

CALL_AGE_LIMIT_S = 60.0
"""After which a call takes no new generations, so that they follow when a server tells connections to move on."""

CALL_STREAM_LIMIT = 256
"""Generations of one call at a time. A further one begins another call."""

_NO_METADATA = grpc.aio.Metadata()
_CODES = {code.value[0]: code for code in grpc.StatusCode}

# The edge to grpc, whose types do not know how a call is made of what it carries.
MultiplexedCall: TypeAlias = "grpc.aio.StreamStreamCall[Any, pb.GenerateMultiplexedResponse]"


class BeginCall(Protocol):
    """How a channel begins a call."""

    def __call__(
        self, requests: AsyncIterator[pb.GenerateMultiplexedRequest], *, wait_for_ready: bool
    ) -> MultiplexedCall:
        """Begins a call with its commands, at once or when there is a connection."""
        ...


class ResponseStream(Protocol):
    """A generation stream: gRPC's call of it, or one of several that share a call.

    Iterating raises `grpc.aio.AioRpcError` if it fails, and `asyncio.CancelledError` once it was cancelled.
    """

    def __aiter__(self) -> AsyncIterator[pb.GenerateStreamResponse]:
        """Iterates over the events. To be called once."""
        ...

    def cancel(self) -> bool:
        """Ends it; returns whether it had not ended."""
        ...


class Multiplexer:
    """Begins generation streams on the newest call, and new calls where that has had its day."""

    def __init__(self, begin_call: BeginCall, *, retries: bool) -> None:
        """Takes whether to try again what a server did not admit, as gRPC does it with calls."""
        self._begin_call = begin_call
        self.retries = retries
        self._calls: dict[bool, _SharedCall] = {}
        """The newest, by whether it waits for a connection."""
        self._open: set[_SharedCall] = set()
        """Those and older ones that have not ended."""
        self.waiting: set[MultiplexedStream] = set()
        """Streams that will be tried again."""

    def stream(
        self,
        request: pb.GenerateRequest,
        arguments: CallArguments,
        when_ended: Callable[[grpc.StatusCode], None] | None = None,
    ) -> "MultiplexedStream":
        """Begins a stream; `when_ended` is told its status."""
        stream = MultiplexedStream(self, request, arguments, when_ended)
        self.begin(stream)
        return stream

    def begin(self, stream: "MultiplexedStream") -> None:
        """Begins a stream on a call that takes it."""
        waits = stream.arguments.wait_for_ready
        call = self._calls.get(waits)
        if call is None or not call.takes_streams:
            call = self._calls[waits] = _SharedCall(
                self._begin_call, wait_for_ready=waits, when_ended=self._open.discard
            )
            self._open.add(call)
        call.add(stream)

    def retire(self) -> None:
        """Ends each call with its last generation; what is begun later gets a new one."""
        for call in self._calls.values():
            call.retire()
        self._calls.clear()

    async def close(self) -> None:
        """Ends what waits for another try, and hands out what gRPC's calls, already ended, said last."""
        for call in list(self._open):
            await call.wait_ended()
        for stream in list(self.waiting):
            stream.cancel()


class MultiplexedStream:
    """One generation on a call that others share. Looks like a call of its own to whoever reads it."""

    __slots__ = (
        "_attempt_count",
        "_call",
        "_deadline_s",
        "_end",
        "_has_events",
        "_is_over",
        "_multiplexer",
        "_pending",
        "_reader",
        "_request",
        "_stream_id",
        "_timers",
        "_when_ended",
        "arguments",
    )

    def __init__(
        self,
        multiplexer: Multiplexer,
        request: pb.GenerateRequest,
        arguments: CallArguments,
        when_ended: Callable[[grpc.StatusCode], None] | None,
    ) -> None:
        self.arguments = arguments
        self._multiplexer = multiplexer
        self._request = request
        self._when_ended = when_ended
        self._call: _SharedCall | None = None
        """None while it waits for being tried again, and when it is over."""
        self._stream_id = 0
        self._attempt_count = 0
        self._has_events = False
        self._pending = deque[pb.GenerateStreamResponse]()
        self._reader: asyncio.Future[None] | None = None
        self._is_over = False
        self._end: BaseException | None = None
        """What the reader gets after what is pending, once it is over; None for a good end."""
        self._timers: list[asyncio.TimerHandle] = []
        self._deadline_s: float | None = None
        """A moment on the event loop's clock."""
        if arguments.timeout_s is not None:
            loop = asyncio.get_running_loop()
            self._deadline_s = loop.time() + arguments.timeout_s
            # Whether or not the server is there to say so.
            self._timers.append(loop.call_at(self._deadline_s, self._expire))

    def cancel(self) -> bool:
        """Ends it; returns whether it had not ended."""
        if self._is_over:
            return False
        self._leave()
        self._pending.clear()
        self._finish(grpc.StatusCode.CANCELLED, asyncio.CancelledError())
        return True

    def opening(self, call: "_SharedCall", stream_id: int) -> pb.GenerationOpening:
        """Returns what begins it on a call."""
        self._multiplexer.waiting.discard(self)
        self._call, self._stream_id = call, stream_id
        self._attempt_count += 1
        opening = pb.GenerationOpening(request=self._request, metadata=dict(self.arguments.metadata))
        if self._deadline_s is not None:
            remaining_s = self._deadline_s - asyncio.get_running_loop().time()
            opening.timeout.FromNanoseconds(max(1, round(remaining_s * 1e9)))
        return opening

    def put(self, response: pb.GenerateStreamResponse) -> None:
        """Takes what the server has sent."""
        self._has_events = True
        self._pending.append(response)
        self._wake()

    def finish(self) -> None:
        """Takes that it ended well."""
        self._finish(grpc.StatusCode.OK, None)

    def fail(self, code: grpc.StatusCode, error: BaseException) -> None:
        """Takes that the server failed it, or the call; it may be tried again."""
        self._call = None
        wait_s = self._wait_s(code, error)
        if wait_s is None:
            self._finish(code, error)
        else:
            self._multiplexer.waiting.add(self)
            self._timers.append(asyncio.get_running_loop().call_later(wait_s, self._multiplexer.begin, self))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> pb.GenerateStreamResponse:
        while not self._pending:
            if self._is_over:
                if self._end is None:
                    raise StopAsyncIteration
                raise self._end
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            except asyncio.CancelledError:
                # As a call of its own: whoever gives up reading gives up the generation.
                self.cancel()
                raise
        return self._pending.popleft()

    def _wait_s(self, code: grpc.StatusCode, error: BaseException) -> float | None:
        """Returns how long to wait before the next attempt; None if there is to be none."""
        if self._has_events or not self._multiplexer.retries:
            return None
        if code.name not in RETRYABLE_CODES or not isinstance(error, grpc.aio.AioRpcError):
            return None
        if self._attempt_count >= ATTEMPT_LIMIT:
            return None
        wait_s = read_details(error.trailing_metadata() or ()).retry_after_s
        if wait_s is None:
            wait_s = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * BACKOFF_FACTOR ** (self._attempt_count - 1))
            wait_s *= random.uniform(0.8, 1.2)  # noqa: S311  # no secret: so that not all come back at once
        is_in_time = self._deadline_s is None or asyncio.get_running_loop().time() + wait_s < self._deadline_s
        return wait_s if is_in_time else None

    def _expire(self) -> None:
        self._leave()
        code = grpc.StatusCode.DEADLINE_EXCEEDED
        self._finish(code, grpc.aio.AioRpcError(code, _NO_METADATA, _NO_METADATA, details="Deadline Exceeded"))

    def _leave(self) -> None:
        """Has the server end it, if it knows of it."""
        if self._call is not None:
            self._call.cancel(self._stream_id)

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _finish(self, code: grpc.StatusCode, error: BaseException | None) -> None:
        self._is_over, self._end, self._call = True, error, None
        for timer in self._timers:
            timer.cancel()
        self._multiplexer.waiting.discard(self)
        self._wake()
        if self._when_ended is not None:
            self._when_ended(code)


class _SharedCall:
    """One call, and the generations on it."""

    def __init__(
        self, begin_call: BeginCall, *, wait_for_ready: bool, when_ended: Callable[["_SharedCall"], None]
    ) -> None:
        self._when_ended = when_ended
        self._streams: dict[int, MultiplexedStream] = {}
        self._last_stream_id = 0
        self._began_s = time.monotonic()
        self._is_retired = False
        self._commands = asyncio.Queue[pb.GenerateMultiplexedRequest | None]()
        self._call = begin_call(self._requests(), wait_for_ready=wait_for_ready)
        self._reading = asyncio.create_task(self._read())

    @property
    def takes_streams(self) -> bool:
        """Whether new generations belong on this call."""
        if time.monotonic() - self._began_s >= CALL_AGE_LIMIT_S:
            self.retire()
        return not self._is_retired and len(self._streams) < CALL_STREAM_LIMIT

    def add(self, stream: MultiplexedStream) -> None:
        """Begins a generation."""
        self._last_stream_id += 1
        self._streams[self._last_stream_id] = stream
        opening = stream.opening(self, self._last_stream_id)
        self._commands.put_nowait(pb.GenerateMultiplexedRequest(stream_id=self._last_stream_id, open=opening))

    def cancel(self, stream_id: int) -> None:
        """Ends a generation that has not ended."""
        cancellation = pb.GenerationCancellation()
        self._commands.put_nowait(pb.GenerateMultiplexedRequest(stream_id=stream_id, cancel=cancellation))
        self._take_out(stream_id)

    def retire(self) -> None:
        """Takes no more generations, and ends with the last one."""
        self._is_retired = True
        self._half_close_if_idle()

    async def wait_ended(self) -> None:
        """Waits until the call has ended and its generations know of it."""
        await self._reading

    async def _requests(self) -> AsyncIterator[pb.GenerateMultiplexedRequest]:
        while (command := await self._commands.get()) is not None:
            yield command

    def _take_out(self, stream_id: int) -> MultiplexedStream:
        stream = self._streams.pop(stream_id)
        self._half_close_if_idle()
        return stream

    def _half_close_if_idle(self) -> None:
        if self._is_retired and not self._streams:
            self._commands.put_nowait(None)

    async def _read(self) -> None:
        """Hands out what comes, until the call ends."""
        code = grpc.StatusCode.INTERNAL
        error: BaseException = _error(code, "the call ended, and this generation had not")
        try:
            async for response in self._call:
                if response is None:  # what gRPC makes of bytes that are no message
                    self._call.cancel()
                    break
                if response.is_going_away:
                    self.retire()
                for event in response.events:
                    self._hand_out(event)
        except grpc.aio.AioRpcError as failure:
            code, error = failure.code(), failure
        except asyncio.CancelledError:
            # The channel was closed, or the event loop ends.
            code, error = grpc.StatusCode.CANCELLED, asyncio.CancelledError()
        self._is_retired = True
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(code, error)
        self._when_ended(self)

    def _hand_out(self, event: pb.GenerationEvent) -> None:
        stream_id = event.stream_id
        stream = self._streams.get(stream_id)
        if stream is None:  # it was cancelled
            return
        if event.HasField("response"):
            response = event.response
            stream.put(response)
            if response.HasField("finished"):
                self._take_out(stream_id).finish()
        elif event.HasField("error"):
            failed = event.error
            code = _CODES.get(failed.code, grpc.StatusCode.UNKNOWN)
            self._take_out(stream_id).fail(code, _error(code, failed.message, failed.status_details))


def _error(code: grpc.StatusCode, message: str, status_details: bytes = b"") -> grpc.aio.AioRpcError:
    trailers = grpc.aio.Metadata((STATUS_DETAILS_KEY, status_details)) if status_details else _NO_METADATA
    return grpc.aio.AioRpcError(code, _NO_METADATA, trailers, details=message)
