"""The span of a gRPC call that a server answers, by OpenTelemetry's conventions for RPC."""

from collections.abc import Iterable
from typing import Final

import grpc
from opentelemetry.trace import SpanKind

from headrace.services.telemetry.spans import Tracing, trace_parent_of

_SERVER_ERRORS: Final = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}
"""What the conventions count as a failure of a server; the others are its caller's."""


class CallSpan:
    """One call, in the trace that its metadata name."""

    def __init__(self, tracing: Tracing, path: str, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Begins the span. Takes the method's path in HTTP/2."""
        method = path.removeprefix("/")
        self._tracing = tracing
        self._span = tracing.begin(
            method,
            kind=SpanKind.SERVER,
            headers={key: value for key, value in metadata if isinstance(value, str)},
            attributes={
                "rpc.system": "grpc",
                "rpc.service": method.rpartition("/")[0],
                "rpc.method": method.rpartition("/")[2],
            },
        )
        self.trace_parent = trace_parent_of(self._span)
        """For the spans that belong to it; empty if it is not recorded."""

    def end(self, code: grpc.StatusCode, request_id: str) -> None:
        """Ends the span with the status of the call, and the id that it has in the log."""
        number: int = code.value[0]
        self._span.set_attribute("rpc.grpc.status_code", number)
        self._span.set_attribute("headrace.request_id", request_id)
        self._tracing.end(self._span, error=code.name if code in _SERVER_ERRORS else "")
