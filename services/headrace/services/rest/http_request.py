"""What an HTTP request carries beside its meaning: its id, its deadline, its body and its caller's presence."""

import asyncio
import re
import uuid
from collections.abc import Awaitable, Mapping
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from headrace.contract.errors import InvalidRequest
from headrace.services.rest.errors import HttpProblem
from headrace.services.rest.router_link import CallContext

REQUEST_ID_HEADER = "x-request-id"
TIMEOUT_HEADER = "x-request-timeout-s"
IGNORED_HEADER = "x-headrace-ignored"
"""Names the fields of a request that were understood and have no effect here."""

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_FORWARDED = ("traceparent", "tracestate", "authorization")
_KEY_HEADER = "x-api-key"
"""Where Anthropic's clients put what others put into `authorization`."""

Result = TypeVar("Result")


class ClientGone(Exception):
    """The caller hung up; nobody reads an answer."""


def context_of(request: Request, deadline_s: float) -> CallContext:
    """Returns what a request says of the calls made for it.

    Raises:
        InvalidRequest: the timeout is no positive number.
    """
    given = request.headers.get(REQUEST_ID_HEADER, "")
    is_own_id = _REQUEST_ID.fullmatch(given) is None
    return CallContext(
        request_id=uuid.uuid4().hex if is_own_id else given,
        is_own_id=is_own_id,
        deadline_s=min(deadline_s, _timeout_s(request.headers)),
        # The sidecar's own span, where it has one, stands between the caller's and the router's.
        metadata=_metadata(request.headers) | request.scope.get("trace_context", {}),
    )


def _metadata(headers: Mapping[str, str]) -> dict[str, str]:
    metadata = {name: value for name in _FORWARDED if (value := headers.get(name, "")) and value.isascii()}
    key = headers.get(_KEY_HEADER, "")
    if key and key.isascii():
        metadata.setdefault("authorization", f"Bearer {key}")
    return metadata


def request_id_for_router(context: CallContext, index: int = 0) -> str:
    """Returns an id that no other running request has: callers use one of theirs for several requests."""
    if context.is_own_id and index == 0:
        return context.request_id
    return f"{context.request_id[:110]}-{uuid.uuid4().hex[:12]}"


async def read_bytes(request: Request, *, limit_bytes: int, timeout_s: float) -> bytes:
    """Reads a body.

    Raises:
        HttpProblem: it is too large or too slow, or encoded.
        ClientGone: the caller hung up.
    """
    _check_headers(request.headers, limit_bytes)
    chunks: list[bytes] = []
    size_bytes = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                size_bytes += len(chunk)
                if size_bytes > limit_bytes:
                    raise _too_large(limit_bytes)
                chunks.append(chunk)
    except TimeoutError as error:
        raise HttpProblem(408, f"the body took longer to come than the limit of {timeout_s:g} s") from error
    except ClientDisconnect as error:
        raise ClientGone from error
    return b"".join(chunks)


async def while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """Waits for work, and ends it when the caller hangs up. The body must have been read.

    Raises:
        ClientGone: the caller hung up.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _timeout_s(headers: Mapping[str, str]) -> float:
    text = headers.get(TIMEOUT_HEADER)
    if text is None:
        return float("inf")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise InvalidRequest.of(TIMEOUT_HEADER, f"must be a positive number of seconds, not {text!r}")
    return seconds


def _check_headers(headers: Mapping[str, str], limit_bytes: int) -> None:
    encoding = headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise HttpProblem(415, f"a body must not be encoded, and this one is: {encoding!r}")
    kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise HttpProblem(415, f"the content type must be application/json, not {kind!r}")
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit_bytes:
        raise _too_large(limit_bytes)


def _too_large(limit_bytes: int) -> HttpProblem:
    return HttpProblem(413, f"the body is larger than the limit of {limit_bytes} bytes")
