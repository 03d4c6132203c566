"""Requests that offer another protocol, as Java's `HttpClient` does, are answered by HTTP/1.1, and no body is lost."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

JAVA = b"connection: Upgrade, HTTP2-Settings\r\nhttp2-settings: AAEAAEAAAAIAAAABAAMAAABk\r\nupgrade: h2c\r\n"
WEBSOCKET = b"connection: keep-alive, Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
LAST = b"connection: close, Upgrade\r\nupgrade: h2c\r\n"
BODY = b'{"prompt":"x","max_tokens":2}'
PING = b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n"
PATH = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"


def sized(offer: bytes, body: bytes = BODY) -> bytes:
    return PATH + offer + b"content-length: %d\r\n\r\n%b" % (len(body), body)


def chunked(offer: bytes, body: bytes = BODY) -> bytes:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(body[at : at + 9]), body[at : at + 9]) for at in range(0, len(body), 9))
    return PATH + offer + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


def whole(request: bytes) -> list[bytes]:
    return [request]


def head_and_body(request: bytes) -> list[bytes]:
    head, end, body = request.partition(b"\r\n\r\n")
    return [head + end, body]


def byte_by_byte(request: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in request]


class Connection:
    """One connection, which is kept as long as the sidecar keeps it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()
            await asyncio.sleep(0.002 if len(piece) == 1 else 0.05)

    async def head(self) -> bytes:
        """Reads the head of an answer."""
        return await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 10)

    async def answer(self) -> tuple[int, bytes]:
        """Reads one answer, with its status and body."""
        head = await self.head()
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return int(head.split()[1]), await asyncio.wait_for(self._reader.readexactly(length), 10)

    async def completes(self) -> bool:
        """Whether the answer is that of a completion."""
        status, body = await self.answer()
        return status == 200 and json.loads(body)["object"] == "text_completion"

    async def pongs(self) -> bool:
        """Whether the answer is that of a ping, and so no error."""
        status, body = await self.answer()
        return status == 200 and b"object" not in body

    async def remainder(self) -> bytes:
        """Reads all that comes until the connection ends."""
        return await asyncio.wait_for(self._reader.read(), 10)

    async def is_silent(self) -> bool:
        """Whether nothing comes, although there was time for it, and the connection is kept."""
        try:
            await asyncio.wait_for(self._reader.read(1), 0.3)
        except TimeoutError:
            return True
        return False


@asynccontextmanager
async def connect(rest: Any) -> AsyncIterator[Connection]:
    host, _, port = rest.base_url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


@pytest.mark.parametrize("offer", [JAVA, WEBSOCKET], ids=["h2c", "websocket"])
@pytest.mark.parametrize("request_of", [sized, chunked])
@pytest.mark.parametrize("cut", [whole, head_and_body, byte_by_byte])
async def test_a_request_with_an_offer_is_served_and_its_connection_kept(
    rest: Any,
    offer: bytes,
    request_of: Callable[[bytes], bytes],
    cut: Callable[[bytes], list[bytes]],
) -> None:
    async with connect(rest) as connection:
        for _ in range(2):
            await connection.send(*cut(request_of(offer)))
            assert await connection.completes()
            assert await connection.is_silent()
        await connection.send(sized(b""))
        assert await connection.completes()


@pytest.mark.parametrize("request_of", [sized, chunked])
@pytest.mark.parametrize("cut", [whole, head_and_body, byte_by_byte])
async def test_a_body_hides_no_request(
    rest: Any, request_of: Callable[[bytes, bytes], bytes], cut: Callable[[bytes], list[bytes]]
) -> None:
    async with connect(rest) as connection:
        await connection.send(*cut(request_of(JAVA, PING)))
        status, body = await connection.answer()
        assert (status, "error" in json.loads(body)) == (400, True)
        assert await connection.is_silent()
        await connection.send(PING)
        assert await connection.pongs()


@pytest.mark.parametrize("cut", [whole, byte_by_byte])
async def test_requests_may_follow_at_once(rest: Any, cut: Callable[[bytes], list[bytes]]) -> None:
    async with connect(rest) as connection:
        bare = PING[:-2] + JAVA + b"\r\n"
        await connection.send(*cut(sized(JAVA) + PING + chunked(JAVA) + bare + bare + sized(b"") + PING))
        assert await connection.completes()
        assert await connection.pongs()
        assert await connection.completes()
        assert await connection.pongs()
        assert await connection.pongs()
        assert await connection.completes()
        assert await connection.pongs()
        assert await connection.is_silent()


@pytest.mark.parametrize("offer", [JAVA, WEBSOCKET], ids=["h2c", "websocket"])
@pytest.mark.parametrize("cut", [whole, byte_by_byte])
async def test_an_offer_without_a_body_is_passed_over(
    rest: Any, offer: bytes, cut: Callable[[bytes], list[bytes]]
) -> None:
    async with connect(rest) as connection:
        for _ in range(2):
            await connection.send(*cut(PING[:-2] + offer + b"\r\n"))
            assert await connection.pongs()
            assert await connection.is_silent()


async def test_the_other_options_of_a_connection_stay(rest: Any) -> None:
    for offer in (LAST, LAST.replace(b"close, Upgrade", b"Upgrade ,CLOSE")):
        async with connect(rest) as connection:
            await connection.send(sized(offer))
            assert await connection.completes()
            assert await connection.remainder() == b""


async def test_a_caller_that_waits_to_send_a_body_is_told_to(rest: Any) -> None:
    async with connect(rest) as connection:
        head, body = head_and_body(sized(JAVA + b"expect: 100-continue\r\n"))
        await connection.send(head)
        assert b" 100 Continue" in await connection.head()
        await connection.send(body)
        assert await connection.completes()


async def test_of_two_lengths_none_is_believed(rest: Any) -> None:
    both = b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    for framing in (both, b"content-length: 5\r\ncontent-length: 6\r\n\r\nabcde", b"transfer-encoding: x\r\n\r\nabcde"):
        async with connect(rest) as connection:
            await connection.send(PATH + JAVA + framing + PING)
            assert (await connection.remainder()).count(b"HTTP/1.1 400 ") == 1


async def test_a_tunnel_is_refused(rest: Any) -> None:
    for offer in (b"", JAVA):
        async with connect(rest) as connection:
            await connection.send(b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n" + offer + b"\r\n" + PING)
            answer = await connection.remainder()
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("cut", [whole, lambda head: [head[:20_000], head[20_000:]]], ids=["whole", "pieces"])
async def test_what_is_left_out_of_a_head_is_counted(rest: Any, cut: Callable[[bytes], list[bytes]]) -> None:
    async with connect(rest) as connection:
        await connection.send(*cut(PATH + JAVA + b"http2-settings: " + b"A" * 40_000 + b"\r\n\r\n"))
        assert (await connection.remainder()).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("sent", [PATH + JAVA, sized(JAVA)[:-5]], ids=["head", "body"])
async def test_a_request_with_an_offer_that_stops_is_not_waited_for(
    deploy_rest: Callable[..., Any], sent: bytes
) -> None:
    async with deploy_rest(read_timeout_s=0.3) as rest, connect(rest) as connection:
        await connection.send(sent)
        assert (await connection.remainder()).startswith(b"HTTP/1.1 408 ")
