"""Many generations over one call: each in a frame of its own, as if it had come by itself."""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from contextlib import suppress

import grpc

from headrace.client.errors import STATUS_DETAILS_KEY
from headrace.contract.clock import Clock
from headrace.contract.errors import InvalidRequest
from headrace.contract.generation import GenerationEvent
from headrace.services.call_frame import CallFrames
from headrace.services.channel_options import METADATA_SIZE_LIMIT_BYTES
from headrace.services.convert_event import fill_response
from headrace.services.joined_write import JoinedWrite, Outbox
from headrace.v1 import generate_service_pb2 as pb

GENERATE_STREAM = "/headrace.v1.GenerateService/GenerateStream"
"""What each of the generations is: to the log, to metrics and to the rules of access."""

TIMEOUT_LIMIT_S = 315_576_000_000
"""Longest duration by protobuf's own rules. Timers of the event loop overflow at a thousand times as much."""

Answer = Callable[[pb.GenerateRequest, "GenerationContext"], Awaitable[None]]
"""Answers one request by writing to its context."""


class GenerationContext:
    """What gRPC's context is to a call of its own, and where its messages go."""

    def __init__(self, stream_id: int, opening: pb.GenerationOpening, outbox: Outbox, clock: Clock) -> None:
        self._stream_id = stream_id
        self._metadata = tuple((key.lower(), value) for key, value in opening.metadata.items())
        self._outbox = outbox
        self._joined: JoinedWrite | None = None
        self._clock = clock
        timeout_s = opening.timeout.ToNanoseconds() / 1e9 if opening.HasField("timeout") else None
        self._deadline_s = None if timeout_s is None else clock.now() + timeout_s
        self._code = grpc.StatusCode.OK

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """Returns what the caller sent beside the request."""
        return self._metadata

    def time_remaining(self) -> float | None:
        """Returns the seconds to the caller's deadline; None if there is none."""
        return None if self._deadline_s is None else self._deadline_s - self._clock.now()

    def code(self) -> grpc.StatusCode:
        """Returns the status that was set."""
        return self._code

    def prepare(self, event: GenerationEvent) -> None:
        """Adds an event to the message that all generations share."""
        message, self._joined = self._outbox.add(self._stream_id)
        fill_response(message.response, event)

    def begin(self) -> JoinedWrite:
        """Returns that message, which is written when all had their turn."""
        assert self._joined is not None, "an event was prepared"
        return self._joined

    async def abort(
        self, code: grpc.StatusCode, details: str, trailing_metadata: Sequence[tuple[str, str | bytes]]
    ) -> None:
        """Ends the generation with a status, and returns when that was written."""
        self._code = code
        status_details = next((value for key, value in trailing_metadata if key == STATUS_DETAILS_KEY), b"")
        assert isinstance(status_details, bytes), "gRPC's rule for keys in -bin"
        event, joined = self._outbox.add(self._stream_id)
        event.error.code, event.error.message, event.error.status_details = code.value[0], details, status_details
        await joined.wait()


class MultiplexedCall:
    """Obeys the commands of one call."""

    def __init__(self, frames: CallFrames, answer: Answer, outbox: Outbox, clock: Clock) -> None:
        self._frames = frames
        self._answer = answer
        self._outbox = outbox
        self._clock = clock
        self._last_stream_id = 0
        self._tasks: dict[int, asyncio.Task[None]] = {}
        """By number of the generation, until it has ended."""

    async def run(self, requests: AsyncIterable[pb.GenerateMultiplexedRequest], departure: asyncio.Event) -> None:
        """Returns when the caller has half-closed the call and every generation has ended.

        Args:
            requests: the commands, in order.
            departure: set when the server begins to go away.

        Raises:
            InvalidRequest: a command breaks the rules of the call.
        """
        telling = asyncio.create_task(self._tell_of(departure))
        try:
            async for request in requests:
                self._obey(request)
            while self._tasks:
                await asyncio.wait(self._tasks.values())
        finally:
            tasks = (telling, *self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._outbox.close()

    def _obey(self, request: pb.GenerateMultiplexedRequest) -> None:
        stream_id = request.stream_id
        match request.WhichOneof("command"):
            case "open":
                if stream_id <= self._last_stream_id:
                    raise InvalidRequest.of("stream_id", f"must be above {self._last_stream_id}, the last one opened")
                self._last_stream_id = stream_id
                task = asyncio.create_task(self._generate(stream_id, request.open))
                self._tasks[stream_id] = task
                task.add_done_callback(lambda _: self._tasks.pop(stream_id))
            case "cancel":
                if stream_id in self._tasks:
                    self._tasks[stream_id].cancel()
            case _:
                raise InvalidRequest.of("command", "one of open and cancel must be set")

    async def _generate(self, stream_id: int, opening: pb.GenerationOpening) -> None:
        context = GenerationContext(stream_id, opening, self._outbox, self._clock)
        # The frame has told the caller, and the log where it is ours.
        with suppress(Exception):
            async with self._frames.around(GENERATE_STREAM, context) as call:
                _check(opening)
                self._frames.admit(call, context)
                await self._answer(opening.request, context)

    async def _tell_of(self, departure: asyncio.Event) -> None:
        await departure.wait()
        self._outbox.announce_departure()


def _check(opening: pb.GenerationOpening) -> None:
    if opening.HasField("timeout") and not 0 < opening.timeout.ToNanoseconds() <= TIMEOUT_LIMIT_S * 10**9:
        raise InvalidRequest.of("timeout", f"must be positive and at most {TIMEOUT_LIMIT_S} s")
    size_bytes = sum(len(key.encode()) + len(value.encode()) for key, value in opening.metadata.items())
    if size_bytes > METADATA_SIZE_LIMIT_BYTES:
        raise InvalidRequest.of("metadata", f"must be at most {METADATA_SIZE_LIMIT_BYTES} bytes, got {size_bytes}")
