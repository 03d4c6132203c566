"""The span of each HTTP request that a sidecar answers, by OpenTelemetry's conventions for HTTP."""

from collections.abc import Callable, Set

from opentelemetry.trace import SpanKind
from starlette.types import Scope

from headrace.services.telemetry.http_metrics import UNKNOWN_PATH
from headrace.services.telemetry.spans import TRACE_PARENT, Tracing, trace_parent_of


class HttpSpans:
    """Goes on with the trace that the headers name, and hands it to the router's calls by the scope."""

    def __init__(self, tracing: Tracing, *, untraced: Set[str]) -> None:
        """Takes the paths of requests that get no span."""
        self._tracing = tracing
        self._untraced = untraced

    def __call__(self, scope: Scope) -> Callable[[int], None]:
        """Begins the span of a request; what is returned ends it, with the status of the answer."""
        if scope["path"] in self._untraced:
            return lambda _: None
        span = self._tracing.begin(
            scope["method"],
            kind=SpanKind.SERVER,
            headers={name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]},
            attributes={"http.request.method": scope["method"], "url.scheme": scope["scheme"]},
        )
        if trace_parent := trace_parent_of(span):
            scope["trace_context"] = {TRACE_PARENT: trace_parent}

        def end(status: int) -> None:
            # Known once the router of the application has found it. A path that is none would make names without end,
            # and may hold anything: it is not told.
            if route := scope.get("endpoint_path"):
                span.update_name(f"{scope['method']} {route}")
                span.set_attribute("http.route", route)
            span.set_attribute("url.path", route or UNKNOWN_PATH)
            if status:
                span.set_attribute("http.response.status_code", status)
            self._tracing.end(span, error=str(status) if status >= 500 else "")

        return end
