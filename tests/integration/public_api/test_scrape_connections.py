"""Whoever connects to the metrics of a process and does not let go takes neither its threads nor others' places."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from certificates import Authority
from scrape import scrape

from headrace.services.address import TcpAddress
from headrace.services.server_tls import ServerTls, ServerTlsFiles
from headrace.services.telemetry.endpoint import serve_metrics
from headrace.services.telemetry.http_server import MetricsServer


@asynccontextmanager
async def metrics(tls: ServerTls | None = None) -> AsyncIterator[str]:
    async with serve_metrics(TcpAddress("127.0.0.1", 0), (), (), tls=tls) as endpoint:
        assert endpoint is not None
        yield endpoint.address


async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def is_ended_by_server(address: str, start: bytes, piece: bytes) -> bool:
    """Sends a byte now and then; returns whether the server ends the connection all the same."""
    reader, writer = await connect(address)
    writer.write(start)
    ended = asyncio.ensure_future(reader.read())
    for _ in range(200):
        if ended.done():
            break
        writer.write(piece)
        await asyncio.wait([ended], timeout=0.05)
    writer.close()
    await asyncio.gather(ended, writer.wait_closed(), return_exceptions=True)
    return ended.done()


@pytest.mark.parametrize("start", [b"GET /met", b"GET /metrics HTTP/1.1\r\nx-a: "])
async def test_a_trickle_is_not_taken_for_progress(monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
    monkeypatch.setattr(MetricsServer, "scrape_timeout_s", 0.2)
    async with metrics() as address:
        assert await is_ended_by_server(address, start, b"x")
        assert (await scrape(address)).get("process_cpu_seconds_total") > 0


async def test_nor_is_a_handshake_that_is_trickled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(MetricsServer, "scrape_timeout_s", 0.2)
    pair = Authority(tmp_path).issue("server")
    tls = ServerTls(ServerTlsFiles(certificate=pair.certificate, key=pair.key))
    async with metrics(tls) as address:
        # The beginning of a client's greeting that would have 512 bytes.
        assert await is_ended_by_server(address, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00")


async def test_connections_at_a_time_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MetricsServer, "scrape_limit", 3)
    async with metrics() as address:
        held = [await connect(address) for _ in range(3)]
        reader, writer = await connect(address)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        # Its place is free as soon as one of them is gone.
        for reader, writer in held:
            writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert b" 200 OK" in await asyncio.wait_for(reader.read(), 10)
            writer.close()
        assert (await scrape(address)).get("process_cpu_seconds_total") > 0


async def test_a_scraper_with_time_is_answered_in_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    async with metrics(ServerTls(ServerTlsFiles(certificate=pair.certificate, key=pair.key))) as address:
        host, _, port = address.rpartition(":")
        trust = ssl.create_default_context(cafile=authority.ca)
        reader, writer = await asyncio.open_connection(host, int(port), ssl=trust)
        for piece in (b"GET /metr", b"ics HTTP/1.0\r\n", b"\r\n"):
            writer.write(piece)
            await writer.drain()
        assert b"process_cpu_seconds_total" in await asyncio.wait_for(reader.read(), 10)
        writer.close()
