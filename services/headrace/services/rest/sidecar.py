"""What all endpoints are given: the link to the router, the limits, and what one request says of its calls."""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.requests import Request

from headrace.contract.pooling import Pooling
from headrace.services.rest.http_request import (
    IGNORED_HEADER,
    REQUEST_ID_HEADER,
    context_of,
    read_bytes,
    request_id_for_router,
)
from headrace.services.rest.json_body import BodyT, parse_body
from headrace.services.rest.openai_fields import Body
from headrace.services.rest.router_link import CallContext, RouterLink
from headrace.services.telemetry.http_metrics import HttpMeter

if TYPE_CHECKING:  # an import of OpenTelemetry, which is not installed everywhere
    from headrace.services.telemetry.spans import Tracing


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the sidecar itself bounds."""

    body_size_bytes: int
    read_timeout_s: float
    """How long the body of a request may take to come."""
    deadline_s: float
    client_batch_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """What lives as long as the process."""

    link: RouterLink
    limits: Limits
    started_at_s: int
    """Seconds since 1970."""
    is_ending: asyncio.Event
    """Set when the process was told to end: then health says so."""
    default_pooling: Pooling | None = None
    """How hidden states become a vector where a request does not say it; None refuses such requests."""
    meter: HttpMeter = field(default_factory=HttpMeter)
    """Counts the requests."""
    tracing: "Tracing | None" = None
    """Traces them, where somebody asked for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One HTTP request and what is needed to answer it."""

    sidecar: Sidecar
    context: CallContext
    peeked: bytes | None = None
    """The body, if it has been read already."""

    @classmethod
    def of(cls, request: Request, sidecar: Sidecar) -> "Exchange":
        """Returns the exchange of a request.

        Raises:
            InvalidRequest: a header is wrong.
        """
        return cls(sidecar=sidecar, context=context_of(request, sidecar.limits.deadline_s))

    @property
    def link(self) -> RouterLink:
        """The connection to the router."""
        return self.sidecar.link

    async def read(self, request: Request, kind: type[BodyT]) -> BodyT:
        """Reads and checks the body; see `read_bytes` and `parse_body`."""
        return parse_body(await self.read_bytes(request), kind)

    async def read_bytes(self, request: Request) -> bytes:
        """Reads the body; see `read_bytes`."""
        if self.peeked is not None:
            return self.peeked
        limits = self.sidecar.limits
        return await read_bytes(request, limit_bytes=limits.body_size_bytes, timeout_s=limits.read_timeout_s)

    def router_request_id(self, index: int = 0) -> str:
        """Returns the id of one of the calls made for this request."""
        return request_id_for_router(self.context, index)

    def headers(self, body: Body | None = None) -> dict[str, str]:
        """Returns the headers of every answer."""
        headers = {REQUEST_ID_HEADER: self.context.request_id}
        if body is not None and (ignored := body.ignored()):
            headers[IGNORED_HEADER] = ignored
        return headers
