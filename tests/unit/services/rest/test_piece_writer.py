"""Pieces that go straight to the connection are what the server would send, and only where it would not wait."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from headrace.contract.errors import HeadraceError
from headrace.services.rest.event_stream import EventStreamResponse, OpenStream
from headrace.services.rest.piece_writer import offer_pieces, piece_writer
from headrace.v1 import generate_service_pb2 as pb


class Connection:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return False


def begun(method: str = "POST") -> tuple[Any, Connection]:
    """Returns an answer of uvicorn whose status is sent, and its connection."""
    transport: Any = Connection()
    log = logging.getLogger("unused")
    scope: Any = {"type": "http", "method": method, "path": "/"}
    cycle = RequestResponseCycle(
        scope=scope,
        transport=transport,
        flow=FlowControl(transport),
        logger=log,
        access_logger=log,
        access_log=False,
        default_headers=[],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=True,
        on_response=lambda: None,
    )
    offer_pieces(scope, cycle)
    asyncio.run(cycle.send({"type": "http.response.start", "status": 200, "headers": []}))
    transport.written.clear()
    return cycle, transport


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=5000))
def test_a_piece_has_the_bytes_that_the_server_would_send(piece: bytes) -> None:
    cycle, connection = begun()
    asyncio.run(cycle.send({"type": "http.response.body", "body": piece, "more_body": True}))
    assert piece_writer(cycle.scope)(piece)
    sent, written = connection.written
    assert written == sent


def pause(cycle: Any) -> None:
    cycle.flow.pause_writing()


def hang_up(cycle: Any) -> None:
    cycle.disconnected = True


def end(cycle: Any) -> None:
    cycle.response_complete = True


def without_chunks(cycle: Any) -> None:
    cycle.chunked_encoding = False


@pytest.mark.parametrize("change", [pause, hang_up, end, without_chunks])
def test_what_the_server_would_not_simply_write_is_left_to_it(change: Any) -> None:
    cycle, connection = begun()
    change(cycle)
    assert not piece_writer(cycle.scope)(b"x")
    assert connection.written == []


def test_an_answer_to_head_has_no_pieces() -> None:
    cycle, connection = begun("HEAD")
    assert not piece_writer(cycle.scope)(b"x")
    assert connection.written == []


def test_a_server_that_offers_nothing_gets_messages() -> None:
    assert not piece_writer({"type": "http"})(b"x")


class Call:
    """A generation stream that counts what is read of it."""

    def __init__(self, count: int) -> None:
        self.read_count = 0
        self._messages = self._read(count)

    def __aiter__(self) -> AsyncIterator[pb.GenerateStreamResponse]:
        return self._messages

    async def _read(self, count: int) -> AsyncIterator[pb.GenerateStreamResponse]:
        for number in range(count):
            self.read_count += 1
            yield pb.GenerateStreamResponse(delta=pb.GenerationDelta(text=f"{number} "))
        yield pb.GenerateStreamResponse(finished=pb.GenerationFinished())

    def cancel(self) -> bool:
        return True


class Writer:
    """Writes texts as they are."""

    def started(self, started: pb.GenerationStarted) -> bytes:
        del started
        return b""

    def delta(self, delta: pb.GenerationDelta) -> bytes:
        return delta.text.encode()

    def finished(self, finished: pb.GenerationFinished) -> bytes:
        del finished
        return b"."

    def failed(self, error: HeadraceError) -> bytes:
        return str(error).encode()


async def test_nothing_is_read_for_a_caller_who_is_behind() -> None:
    """While the server waits for the caller to read, so does the stream; then all goes on in order."""
    call: Any = Call(count=9)
    may_write, is_waiting = asyncio.Event(), asyncio.Event()
    received: list[bytes] = []

    async def send(message: Any) -> None:
        if message.get("body") == b"4 ":
            is_waiting.set()
            await may_write.wait()
        received.append(message.get("body", b""))

    async def receive() -> Any:
        await asyncio.Event().wait()

    def write(piece: bytes) -> bool:
        if piece == b"4 ":
            return False
        received.append(piece)
        return True

    scope: Any = {"type": "http", "headrace.piece_writer": write}
    stream = OpenStream(call, pb.GenerationStarted(), "router")
    response = EventStreamResponse([(stream, Writer())], closing=lambda: b"!", headers={})
    answering = asyncio.ensure_future(response(scope, receive, send))
    await is_waiting.wait()
    for _ in range(100):
        await asyncio.sleep(0)
    assert call.read_count == 5
    may_write.set()
    await answering
    assert b"".join(received) == b"0 1 2 3 4 5 6 7 8 .!"
