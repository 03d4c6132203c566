"""The sidecar as an ASGI application: routes, errors of every kind, and a line of log for each request."""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Scope

from headrace.contract.errors import HeadraceError
from headrace.services.log import Event, bind_request, logger
from headrace.services.rest.description import DESCRIPTION_ROUTES
from headrace.services.rest.endpoints import ENDPOINTS, OPENAI, Dialect, Endpoint
from headrace.services.rest.errors import HttpProblem
from headrace.services.rest.http_request import ClientGone
from headrace.services.rest.request_watch import Ending, RequestWatch, Watcher
from headrace.services.rest.sidecar import Exchange, Sidecar
from headrace.services.rest.ui_page import ui_routes
from headrace.services.rest.ui_status import get_status
from headrace.services.telemetry.http_metrics import UNKNOWN_PATH, HttpMeter

if TYPE_CHECKING:  # an import of OpenTelemetry, which is not installed everywhere
    from headrace.services.telemetry.spans import Tracing

Answer = Callable[[Request], Awaitable[Response]]

_HUNG_UP = 499
"""What nginx logs for a caller who did not wait; nobody receives it."""

QUIET_PATHS: Final = frozenset({"/health", "/ping"})
"""Checks of health, of which neither the log nor a trace tells."""

_UI_STATUS = Endpoint(method="GET", path="/ui/status", answer=get_status, streams=True)
"""For the page alone, so `/openapi.json` does not promise it."""


def build_app(sidecar: Sidecar, *, cors_origins: tuple[str, ...] = (), with_ui: bool = True) -> ASGIApp:
    """Returns the application, with the page at `/ui` or without."""
    watchers: list[Watcher] = [RequestLog(sidecar.meter)]
    if sidecar.tracing is not None:
        watchers.append(_spans(sidecar.tracing))
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(cors_origins),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["*"],
    )
    endpoints = (*ENDPOINTS, _UI_STATUS) if with_ui else ENDPOINTS
    pages = [*DESCRIPTION_ROUTES, *ui_routes()] if with_ui else DESCRIPTION_ROUTES
    app = Starlette(
        routes=[*pages, *_routes(endpoints, sidecar)],
        middleware=[cors] if cors_origins else [],
        exception_handlers={HTTPException: _refuse, Exception: _admit_bug},
    )
    # A redirect would go to whatever host the caller named.
    app.router.redirect_slashes = False
    return RequestWatch(app, watchers)


class RequestLog:
    """Logs and counts each request when it is over, like the calls of a gRPC server."""

    def __init__(self, meter: HttpMeter) -> None:
        self._meter = meter

    def __call__(self, scope: Scope) -> Ending:
        """Notes that a request begins."""
        begun_at = time.monotonic()
        self._meter.note_begin()

        def end(status: int) -> None:
            is_check = scope["path"] in QUIET_PATHS
            duration_s, code = time.monotonic() - begun_at, str(status or _HUNG_UP)
            # Not the path as it came: that may hold anything, so it is neither logged nor counted.
            path = scope.get("endpoint_path", UNKNOWN_PATH)
            self._meter.note_end(path, code, duration_s, is_check=is_check)
            write = logger().debug if is_check else logger().info
            write(
                Event.CALL_ENDED,
                method=f"{scope['method']} {path}",
                code=code,
                duration_s=round(duration_s, 6),
            )

        return end


def _routes(endpoints: Sequence[Endpoint], sidecar: Sidecar) -> Iterator[Route]:
    """Yields one route for each path, so that a refusal of a method names all that there are."""
    by_path: dict[str, dict[str, Answer]] = {}
    for endpoint in endpoints:
        by_path.setdefault(endpoint.path, {})[endpoint.method] = _guarded(endpoint, sidecar)
    for path, by_method in by_path.items():
        yield Route(path, _by_method(by_method), methods=[*by_method])


def _spans(tracing: "Tracing") -> Watcher:
    from headrace.services.telemetry.http_spans import HttpSpans  # noqa: PLC0415  # see above

    return HttpSpans(tracing, untraced=QUIET_PATHS)


def _by_method(by_method: Mapping[str, Answer]) -> Answer:
    async def answer(request: Request) -> Response:
        return await by_method["GET" if request.method == "HEAD" else request.method](request)

    return answer


def _guarded(endpoint: Endpoint, sidecar: Sidecar) -> Answer:
    """Returns a function that answers requests, and puts what goes wrong in the words of the endpoint's protocol."""
    dialect = endpoint.dialect

    async def answer(request: Request) -> Response:
        request.scope["dialect"] = dialect
        request.scope["endpoint_path"] = endpoint.path
        headers: dict[str, str] = {}
        try:
            exchange = Exchange.of(request, sidecar)
            bind_request(exchange.context.request_id)
            headers = exchange.headers()
            return await endpoint.answer(request, exchange)
        except HeadraceError as error:
            return dialect.write_error(error, headers)
        except ClientGone:
            return Response(status_code=_HUNG_UP)

    return answer


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {404: f"there is no {request.url.path}", 405: f"{request.url.path} does not take {request.method}"}
    problem = HttpProblem(error.status_code, text.get(error.status_code, error.detail))
    return _dialect(request).write_error(problem, dict(error.headers or {}))


async def _admit_bug(request: Request, error: Exception) -> Response:
    """Answers a bug of ours with a fixed text; the server logs the traceback."""
    del error
    return _dialect(request).write_error(HeadraceError("internal error; the sidecar's log explains it"), {})


def _dialect(request: Request) -> Dialect:
    found = request.scope.get("dialect", OPENAI)
    assert isinstance(found, Dialect)
    return found
