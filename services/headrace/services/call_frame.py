"""What happens around every call: its id, its log line, the status of its errors, and the note that it is running."""

import asyncio
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import grpc

from headrace.contract.clock import Clock, MonotonicClock
from headrace.contract.errors import HeadraceError
from headrace.services.gatekeeper import Gatekeeper
from headrace.services.in_flight import Call, InFlightCalls, current_call
from headrace.services.log import Event, bind_request, logger
from headrace.services.status import CallStatus, internal_status, status_of
from headrace.services.telemetry.call_meter import CallMeter

if TYPE_CHECKING:  # imports of OpenTelemetry, which is not installed everywhere
    from headrace.services.telemetry.call_spans import CallSpan
    from headrace.services.telemetry.spans import Tracing

REQUEST_ID_KEY = "x-request-id"
"""Metadata in which a client names its request."""

REQUEST_ID = re.compile(r"[!-~]{1,128}")
"""What may be the id of a request."""

_OBSERVERS = re.compile(
    r"/grpc\.health\.|/grpc\.reflection\.|/headrace\.v1\.RouterService/WatchLoad$|.*/Describe$"
    # Its generations are calls themselves, and it may stay open when none is left.
    r"|/headrace\.v1\.GenerateService/GenerateMultiplexed$"
)

_DEADLINE_SLACK_S = 0.05
"""How long before a deadline an end by the caller counts as the deadline's. NOTE: the caller's clock ends a call, too,
and first: what is left when a call is sent arrives later, and rounded up, so ours may have some milliseconds to go."""

_BeginSpan = Callable[[str, Iterable[tuple[str, str | bytes]]], "CallSpan"]


class CallContext(Protocol):
    """What a frame needs of a call. gRPC's contexts of servicers are such."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """Returns what the caller sent beside the request."""
        ...

    def time_remaining(self) -> float | None:
        """Returns the seconds to the caller's deadline; None if there is none."""
        ...

    def code(self) -> grpc.StatusCode:
        """Returns the status that was set."""
        ...

    async def abort(
        self, code: grpc.StatusCode, details: str, trailing_metadata: Sequence[tuple[str, str | bytes]]
    ) -> None:
        """Ends the call with a status; may raise `grpc.aio.AbortError` when that was sent."""
        ...


def name_call(request_id: str) -> None:
    """Makes the log and the errors of the call at hand carry the id of its request, if that is one."""
    if REQUEST_ID.fullmatch(request_id):
        current_call().rename(request_id)


class CallFrames:
    """Makes the frames around the handlers of one server."""

    def __init__(
        self,
        calls: InFlightCalls,
        meter: CallMeter,
        *,
        gatekeeper: Gatekeeper | None = None,
        clock: Clock | None = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        """Takes who asks callers for keys; None asks nobody."""
        self._calls = calls
        self._meter = meter
        self._gatekeeper = gatekeeper
        self._trace = None if tracing is None else _span_maker(tracing)
        self._clock = clock or MonotonicClock()

    def around(self, method: str, context: CallContext) -> "CallFrame":
        """Returns the frame for one call of a method, given by its full name."""
        return CallFrame(self._calls, self._meter, self._clock, trace=self._trace, method=method, context=context)

    def admit(self, call: Call, context: CallContext) -> None:
        """Lets a caller in, once for each call.

        Raises:
            Unauthenticated: a key is needed, and there is none that is known.
            Forbidden: the key does not open this method.
        """
        if self._gatekeeper is not None:
            call.caller = self._gatekeeper.admit(call.method, context.invocation_metadata() or ())


def _span_maker(tracing: "Tracing") -> "_BeginSpan":
    from headrace.services.telemetry.call_spans import CallSpan  # noqa: PLC0415  # see above

    return partial(CallSpan, tracing)


class CallFrame:
    """The frame around one handler: enter it before anything of the call is looked at."""

    __slots__ = ("_call", "_calls", "_clock", "_code", "_context", "_meter", "_method", "_span", "_started_s", "_trace")

    def __init__(
        self,
        calls: InFlightCalls,
        meter: CallMeter,
        clock: Clock,
        *,
        trace: "_BeginSpan | None",
        method: str,
        context: CallContext,
    ) -> None:
        self._calls = calls
        self._meter = meter
        self._clock = clock
        self._trace = trace
        self._span: CallSpan | None = None
        self._method = method
        self._context = context
        self._code = grpc.StatusCode.OK
        self._started_s = clock.now()

    async def __aenter__(self) -> Call:
        task = asyncio.current_task()
        assert task is not None
        self._call = Call(
            method=self._method,
            request_id=_request_id(self._context),
            is_observer=_OBSERVERS.match(self._method) is not None,
            task=task,
        )
        bind_request(self._call.request_id)
        if self._trace is not None and not self._call.is_observer:
            self._span = self._trace(self._method, self._context.invocation_metadata() or ())
            self._call.trace_parent = self._span.trace_parent
        self._calls.enter(self._call)
        return self._call

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                await self._end_with(error)
        finally:
            # Last, so that whoever waits for idle calls finds the status sent.
            self._note_end()
            self._calls.leave(self._call)

    async def _end_with(self, error: BaseException) -> None:
        """Sends the status of an error, or lets it pass where gRPC itself knows what to do."""
        match error:
            case asyncio.CancelledError() if self._call.ended_by is not None:
                self._call.task.uncancel()
                self._calls.disown(self._call)
                await self._abort_for(self._call.ended_by)
            case asyncio.CancelledError():
                remaining_s: float | None = self._context.time_remaining()
                is_expired = remaining_s is not None and remaining_s <= _DEADLINE_SLACK_S
                self._code = grpc.StatusCode.DEADLINE_EXCEEDED if is_expired else grpc.StatusCode.CANCELLED
            case HeadraceError():
                await self._abort_for(error)
            case grpc.aio.UsageError():
                await self._abort_for_bug(error)
            case grpc.aio.AbortError():
                # A library's servicer, such as the one for health, has answered by itself.
                self._code = self._context.code()
            case grpc.aio.BaseError():
                # The caller is gone, or the status was sent: there is nobody to tell.
                self._code = grpc.StatusCode.CANCELLED
            case Exception():
                await self._abort_for_bug(error)
            case _:
                self._code = grpc.StatusCode.UNKNOWN

    async def _abort_for(self, error: HeadraceError) -> None:
        status = status_of(error, request_id=self._call.request_id, messages_sent=self._call.message_count > 0)
        if status.code is grpc.StatusCode.INTERNAL:
            logger().error(Event.CALL_CRASHED, method=self._method, reason=error.reason, exc_info=error)
        await self._abort(status)

    async def _abort_for_bug(self, error: Exception) -> None:
        logger().error(Event.CALL_CRASHED, method=self._method, exc_info=error)
        await self._abort(internal_status(request_id=self._call.request_id))

    async def _abort(self, status: CallStatus) -> None:
        self._code = status.code
        await self._context.abort(status.code, status.message, status.trailers)

    def _note_end(self) -> None:
        duration_s = self._clock.now() - self._started_s
        if self._span is not None:
            self._span.end(self._code, self._call.request_id)
        self._meter.note_end(self._method, self._code.name, duration_s, is_observer=self._call.is_observer)
        write = logger().debug if self._call.is_observer else logger().info
        write(
            Event.CALL_ENDED,
            method=self._method,
            code=self._code.name,
            duration_s=round(duration_s, 6),
            message_count=self._call.message_count,
        )


def _request_id(context: CallContext) -> str:
    """Returns the id that the client chose, if it is one, else a new one."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and REQUEST_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex
