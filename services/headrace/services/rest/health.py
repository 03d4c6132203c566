"""`/health` and `/ping`: whether requests should be sent here."""

from starlette.requests import Request
from starlette.responses import Response

from headrace.contract.errors import NotReady
from headrace.services.rest.router_link import CallContext
from headrace.services.rest.sidecar import Exchange

_PROBE_DEADLINE_S = 3.0


async def get_health(request: Request, exchange: Exchange) -> Response:
    """Answers 200 without a body while the router serves and the sidecar is not ending."""
    del request
    context = CallContext(
        request_id=exchange.context.request_id, is_own_id=True, deadline_s=_PROBE_DEADLINE_S, metadata={}
    )
    if exchange.sidecar.is_ending.is_set():
        raise NotReady("the sidecar is going away")
    if not await exchange.link.is_serving(context):
        raise NotReady("no router is serving")
    return Response(status_code=200, headers=exchange.headers())
