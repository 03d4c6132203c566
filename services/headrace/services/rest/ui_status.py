"""`/ui/status`: the router's load once a second, as events for the page at `/ui`."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator

import grpc.aio
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import TypedDict

from headrace.client import calls
from headrace.client.errors import StreamBroken, error_from_rpc
from headrace.client.operations import Load, Replica
from headrace.contract.errors import DeadlineExceeded, HeadraceError
from headrace.services.rest.event_stream import MEDIA_TYPE
from headrace.services.rest.http_request import while_connected
from headrace.services.rest.openai_answer import error_event
from headrace.services.rest.sidecar import Exchange

_INTERVAL_S = 1.0


class ReplicaFigures(TypedDict):
    """A replica in one moment."""

    id: str
    model: str
    state: str
    detail: str
    waiting_count: int
    running_count: int
    leased_block_count: int
    cached_block_count: int
    total_block_count: int
    restart_count: int
    generated_tokens_per_s: float | None
    """Since the report before; None in the first one, and in the first after a restart."""


class Figures(TypedDict):
    """A router in one moment."""

    waiting_count: int
    waiting_limit: int
    running_count: int
    expected_wait_s: float
    generated_tokens_per_s: float | None
    """Sum over the replicas."""
    replicas: list[ReplicaFigures]


class FigureReader:
    """Turns the reports of one router into figures; rates need the report before."""

    def __init__(self) -> None:
        self._generated_counts: dict[str, int] = {}
        self._read_at_s = 0.0

    def read(self, load: Load, now_s: float) -> Figures:
        """Returns the figures of a report that came at `now_s`, on a clock that never goes back."""
        elapsed_s = now_s - self._read_at_s
        replicas = [self._replica(replica, elapsed_s) for replica in load.replicas]
        self._generated_counts = {replica.id: replica.load.generated_token_count for replica in load.replicas}
        self._read_at_s = now_s
        rates = [rate for replica in replicas if (rate := replica["generated_tokens_per_s"]) is not None]
        return {
            "waiting_count": load.waiting_count,
            "waiting_limit": load.waiting_limit,
            "running_count": load.running_count,
            "expected_wait_s": load.expected_wait_s,
            "generated_tokens_per_s": sum(rates) if rates else None,
            "replicas": replicas,
        }

    def _replica(self, replica: Replica, elapsed_s: float) -> ReplicaFigures:
        load = replica.load
        before = self._generated_counts.get(replica.id)
        generated = None if before is None else load.generated_token_count - before
        # A replica that came back counts from zero.
        is_known = generated is not None and generated >= 0 and elapsed_s > 0
        return {
            "id": replica.id,
            "model": replica.model,
            "state": replica.state.value,
            "detail": replica.detail,
            "waiting_count": load.waiting_count,
            "running_count": load.running_count,
            "leased_block_count": load.leased_block_count,
            "cached_block_count": load.cached_block_count,
            "total_block_count": load.total_block_count,
            "restart_count": replica.restart_count,
            "generated_tokens_per_s": generated / elapsed_s if is_known and generated is not None else None,
        }


async def get_status(request: Request, exchange: Exchange) -> Response:
    """Streams the load, from one router for as long as the stream lasts: rates compare its own reports."""
    loads = _loads(exchange)
    # The first report is waited for, so that a refusal is a status.
    first = await while_connected(request, _first_of(loads))
    return _FigureStream(first, loads, exchange)


async def _first_of(loads: AsyncGenerator[Load, None]) -> Load:
    async for load in loads:
        return load
    raise StreamBroken("the router ended its reports before the first")


async def _loads(exchange: Exchange) -> AsyncGenerator[Load, None]:
    call = calls.watch_load(_INTERVAL_S)
    under_way = exchange.link.watch(call, exchange.context)
    try:
        async for response in under_way:
            yield call.read(response)
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error, exchange.link.target) from error
    finally:
        under_way.cancel()


class _FigureStream(Response):
    """Writes an event for each report until the caller hangs up, the deadline passes or the sidecar ends."""

    def __init__(self, first: Load, loads: AsyncGenerator[Load, None], exchange: Exchange) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no", **exchange.headers()}
        super().__init__(headers=headers, media_type=MEDIA_TYPE)
        del self.headers["content-length"]
        self._first = first
        self._loads = loads
        self._is_ending = exchange.sidecar.is_ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response, as ASGI asks."""
        del scope
        writing = asyncio.ensure_future(self._write(send))
        # A page that is left open must not hold up the end of the process.
        ending = [asyncio.ensure_future(self._is_ending.wait()), asyncio.ensure_future(_hang_up(receive))]
        try:
            await asyncio.wait([writing, *ending], return_when=asyncio.FIRST_COMPLETED)
            if writing.done() and not writing.cancelled():
                writing.result()
        finally:
            for task in (writing, *ending):
                task.cancel()
            await asyncio.gather(writing, *ending, return_exceptions=True)
            await self._loads.aclose()
        if ending[1].cancelled():
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        reader = FigureReader()
        async for event in self._events(reader):
            await send({"type": "http.response.body", "body": event, "more_body": True})

    async def _events(self, reader: FigureReader) -> AsyncIterator[bytes]:
        yield _event(reader.read(self._first, time.monotonic()))
        try:
            async for load in self._loads:
                yield _event(reader.read(load, time.monotonic()))
        except DeadlineExceeded:
            return  # the page asks again
        except HeadraceError as error:
            yield error_event(error)


def _event(figures: Figures) -> bytes:
    return b"data: " + orjson.dumps(figures) + b"\n\n"


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
