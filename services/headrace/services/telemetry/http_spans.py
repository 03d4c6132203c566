"""The span of each HTTP request that a sidecar answers, by OpenTelemetry's conventions for HTTP."""

from opentelemetry.trace import SpanKind
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.services.telemetry.spans import TRACE_PARENT, Tracing, trace_parent_of

_UNTRACED = {"/health", "/ping"}


class HttpSpans:
    """Goes on with the trace that the headers name, and hands it to the router's calls by the scope."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, as ASGI asks."""
        if scope["type"] != "http" or scope["path"] in _UNTRACED:
            await self._app(scope, receive, send)
            return
        span = self._tracing.begin(
            scope["method"],
            kind=SpanKind.SERVER,
            headers={name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]},
            attributes={"http.request.method": scope["method"], "url.path": scope["path"], "url.scheme": "http"},
        )
        if trace_parent := trace_parent_of(span):
            scope["trace_context"] = {TRACE_PARENT: trace_parent}
        status = 0

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            # Known once the router of the application has found it. A path that is none would make names without end.
            if route := scope.get("endpoint_path"):
                span.update_name(f"{scope['method']} {route}")
                span.set_attribute("http.route", route)
            if status:
                span.set_attribute("http.response.status_code", status)
            self._tracing.end(span, error=str(status) if status >= 500 else "")
