"""Makes the spans of a process and sends them over OTLP. The one place that knows OpenTelemetry's SDK."""

import asyncio
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Final

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

EXPORT_TIMEOUT_S: Final = 5
"""A collector that does not answer holds the end of the process up for no longer."""

TRACE_PARENT: Final = "traceparent"
"""W3C's header, and the key of gRPC metadata."""

_PROPAGATOR: Final = TraceContextTextMapPropagator()


class Tracing:
    """Makes spans. Its methods never wait; a thread of its own sends what has ended."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("headrace", version("headrace"))
        # Spans that are told of afterwards lie on the same line of time as those that end as they are told.
        self._epoch_ns = time.time_ns() - time.monotonic_ns()

    @classmethod
    def exporting_to(cls, endpoint: str, *, service_name: str, share: float) -> "Tracing":
        """Returns tracing that sends to an OTLP endpoint, `http://host:port` or with TLS `https://host:port`.

        `share` of the traces that begin here are recorded; whether others are was decided where they began.
        """
        provider = TracerProvider(
            resource=Resource.create({"service.name": service_name, "service.version": version("headrace")}),
            sampler=ParentBasedTraceIdRatio(share),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint, insecure=endpoint.startswith("http://"), timeout=EXPORT_TIMEOUT_S)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    def begin(
        self,
        name: str,
        *,
        kind: SpanKind,
        headers: Mapping[str, str],
        attributes: Mapping[str, AttributeValue],
        begun_s: float | None = None,
    ) -> Span:
        """Returns a span that runs; the caller ends it.

        Args:
            name: of the span, one of few.
            kind: of the span.
            headers: with the context to go on with, if there is one.
            attributes: of the span.
            begun_s: moment on the monotonic clock; None is now.
        """
        return self._tracer.start_span(
            name,
            context=_PROPAGATOR.extract(headers),
            kind=kind,
            attributes=attributes,
            start_time=None if begun_s is None else self._epoch_ns + round(begun_s * 1e9),
        )

    def end(self, span: Span, *, ended_s: float | None = None, error: str = "") -> None:
        """Ends a span, at a moment on the monotonic clock or now; `error` is the reason of one that failed."""
        if error:
            span.set_attribute("error.type", error)
            span.set_status(Status(StatusCode.ERROR))
        span.end(None if ended_s is None else self._epoch_ns + round(ended_s * 1e9))

    async def close(self) -> None:
        """Sends what is left, and ends."""
        await asyncio.get_running_loop().run_in_executor(None, self._provider.shutdown)


def trace_parent_of(span: Span) -> str:
    """Returns what makes other spans the children of this one, in any process; empty if it is not recorded."""
    if not span.is_recording():
        return ""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, set_span_in_context(span))
    return carrier[TRACE_PARENT]
