"""What an HTTP request carries beside its meaning: its id, its deadline, its body and its caller's presence."""

import asyncio
import re
import uuid
from collections.abc import Awaitable, Mapping
from typing import Final, TypeVar

from starlette.requests import ClientDisconnect, Request

from headrace.contract.errors import InvalidRequest
from headrace.services.rest.errors import HttpProblem
from headrace.services.rest.router_link import CallContext

REQUEST_ID_HEADER = "x-request-id"
TIMEOUT_HEADER = "x-request-timeout-s"
IGNORED_HEADER = "x-headrace-ignored"
"""Names the fields of a request that were understood and have no effect here."""

_REQUEST_ID: Final = re.compile(r"[!-~]{1,128}")
_SECONDS: Final = re.compile(r"[0-9.]+(?:[eE][+-]?[0-9]+)?|inf")

_CREDENTIALS: Final = ("authorization", "x-api-key")
"""The key, and where Anthropic's clients put it; the first goes before the second."""
_TRACE: Final = {"traceparent": 256, "tracestate": 4096}
"""What of a trace goes on to the router, and how long it may be; the standard asks for 512 of the longer one."""
_CREDENTIAL_LIMIT_BYTES: Final = 8192
"""All that goes on together has to fit into the headers of a gRPC call."""

_JOINED: Final = frozenset({"tracestate"})
_OWN_HEADERS: Final = {
    name.encode(): name
    for name in (
        *_CREDENTIALS,
        *_TRACE,
        REQUEST_ID_HEADER,
        TIMEOUT_HEADER,
        "content-encoding",
        "content-length",
        "content-type",
        "transfer-encoding",
    )
}
"""All headers that mean something to the sidecar itself."""

_SCOPE_KEY: Final = "headrace.headers"

Result = TypeVar("Result")


class ClientGone(Exception):
    """The caller hung up; nobody reads an answer."""


def context_of(request: Request, deadline_s: float) -> CallContext:
    """Returns what a request says of the calls made for it.

    Raises:
        InvalidRequest: a header is wrong, or comes twice.
    """
    headers = request.scope[_SCOPE_KEY] = _own_headers(request)
    given = headers.get(REQUEST_ID_HEADER, "")
    is_own_id = _REQUEST_ID.fullmatch(given) is None
    return CallContext(
        request_id=uuid.uuid4().hex if is_own_id else given,
        is_own_id=is_own_id,
        deadline_s=min(deadline_s, _timeout_s(headers)),
        # The sidecar's own span, where it has one, stands between the caller's and the router's.
        metadata=_metadata(headers) | request.scope.get("trace_context", {}),
    )


def _own_headers(request: Request) -> dict[str, str]:
    """Returns the headers that mean something here.

    Of two of a name one would win, and a proxy before the sidecar may have read the other.

    Raises:
        InvalidRequest: a header comes twice.
    """
    headers: dict[str, str] = {}
    for raw_name, value in request.scope["headers"]:
        name = _OWN_HEADERS.get(raw_name)
        if name is None:
            continue
        text = value.decode("latin-1")
        if name not in headers:
            headers[name] = text
        elif name in _JOINED:
            headers[name] += f",{text}"
        else:
            raise InvalidRequest.of(name, "must be given once")
    return headers


def _metadata(headers: Mapping[str, str]) -> dict[str, str]:
    metadata = {
        name: value
        for name, limit in _TRACE.items()
        # A trace that cannot be followed is begun anew, as the standard asks; a request does not fail for it.
        if (value := headers.get(name)) and len(value) <= limit and value.isascii() and value.isprintable()
    }
    for name in _CREDENTIALS:
        value = headers.get(name)
        if not value:
            continue
        if len(value) > _CREDENTIAL_LIMIT_BYTES:
            raise InvalidRequest.of(name, f"must have at most {_CREDENTIAL_LIMIT_BYTES} bytes, has {len(value)}")
        if not (value.isascii() and value.isprintable()):
            raise InvalidRequest.of(name, "must hold printable ASCII characters alone")
        metadata.setdefault("authorization", value if name == "authorization" else f"Bearer {value}")
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
    _check_headers(request.scope[_SCOPE_KEY], limit_bytes)
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
        seconds = float(text) if _SECONDS.fullmatch(text) else 0.0
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise InvalidRequest.of(TIMEOUT_HEADER, f"must be a positive number of seconds, not {text[:40]!r}")
    return seconds


def _check_headers(headers: Mapping[str, str], limit_bytes: int) -> None:
    encoding = headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise HttpProblem(415, f"a body must not be encoded, and this one is: {encoding!r}")
    transfer = headers.get("transfer-encoding", "chunked")
    if transfer.lower() != "chunked":
        raise HttpProblem(415, f"a body may be chunked and not encoded besides, and this one is: {transfer!r}")
    kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise HttpProblem(415, f"the content type must be application/json, not {kind!r}")
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit_bytes:
        raise _too_large(limit_bytes)


def _too_large(limit_bytes: int) -> HttpProblem:
    return HttpProblem(413, f"the body is larger than the limit of {limit_bytes} bytes")
