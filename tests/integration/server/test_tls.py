"""A server with TLS: whom it answers, and how it takes on a new certificate without dropping a stream."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Authority, Pair, shown_serial_number

from headrace.contract.errors import StartupError
from headrace.services.server_tls import ServerTls, ServerTlsFiles
from headrace.v1 import generate_service_pb2 as pb
from headrace.v1.generate_service_pb2_grpc import GenerateServiceStub

REQUEST = pb.GenerateRequest(text="hello")


def server_tls(pair: Pair, client_ca: Path | None = None) -> ServerTls:
    return ServerTls(ServerTlsFiles(certificate=pair.certificate, key=pair.key, client_ca=client_ca))


def open_channel(address: str, ca: Path, pair: Pair | None = None) -> grpc.aio.Channel:
    shown = (pair.key.read_bytes(), pair.certificate.read_bytes()) if pair else (None, None)
    credentials = grpc.ssl_channel_credentials(ca.read_bytes(), *shown)
    # A pool of its own: else two channels with equal credentials share a connection.
    return grpc.aio.secure_channel(address, credentials, [("grpc.use_local_subchannel_pool", 1)])


async def test_a_stream_survives_a_new_certificate_and_new_connections_get_it(serve: Any, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    first = authority.issue("server")
    may_end = asyncio.Event()

    async def two() -> AsyncIterator[pb.GenerateStreamResponse]:
        yield pb.GenerateStreamResponse()
        await may_end.wait()
        yield pb.GenerateStreamResponse()

    async with serve("127.0.0.1:0", tls=server_tls(first)) as running:
        running.servicer.stream = two
        async with open_channel(running.address, authority.ca) as channel:
            stub: Any = GenerateServiceStub(channel)
            stream = stub.GenerateStream(REQUEST)
            assert await stream.read() is not grpc.aio.EOF
            assert await shown_serial_number(running.address) == first.serial_number
            second = authority.issue("server")
            assert await shown_serial_number(running.address) == second.serial_number
            may_end.set()
            assert await stream.read() is not grpc.aio.EOF
            assert await stream.read() is grpc.aio.EOF
            assert await stream.code() is grpc.StatusCode.OK
            await stub.Generate(REQUEST)


async def test_files_that_do_not_fit_together_are_not_taken_on(serve: Any, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    first, other = authority.issue("server"), authority.issue("other")
    async with serve("127.0.0.1:0", tls=server_tls(first)) as running:
        first.certificate.write_bytes(other.certificate.read_bytes())
        assert await shown_serial_number(running.address) == first.serial_number
        first.certificate.unlink()
        assert await shown_serial_number(running.address) == first.serial_number
        first.certificate.write_bytes(other.certificate.read_bytes())
        first.key.write_bytes(other.key.read_bytes())
        assert await shown_serial_number(running.address) == other.serial_number


async def test_who_has_no_certificate_of_the_root_is_not_heard(serve: Any, tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "another root")
    client, foreign = authority.issue("client"), stranger.issue("foreign")
    async with serve("127.0.0.1:0", tls=server_tls(authority.issue("server"), authority.ca)) as running:
        for pair, is_heard in ((client, True), (foreign, False), (None, False)):
            async with open_channel(running.address, authority.ca, pair) as channel:
                stub: Any = GenerateServiceStub(channel)
                if is_heard:
                    await stub.Generate(REQUEST, timeout=10)
                    continue
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Generate(REQUEST, timeout=10)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_roots_of_clients_are_replaced_too(serve: Any, tmp_path: Path) -> None:
    authority, next_one = Authority(tmp_path), Authority(tmp_path, "next root")
    tls = server_tls(authority.issue("server"), authority.ca)
    async with serve("127.0.0.1:0", tls=tls) as running:
        server_ca = authority.ca.read_bytes()
        authority.ca.write_bytes(next_one.ca.read_bytes())
        shown = next_one.issue("client")
        credentials = grpc.ssl_channel_credentials(server_ca, shown.key.read_bytes(), shown.certificate.read_bytes())
        async with grpc.aio.secure_channel(running.address, credentials) as channel:
            stub: Any = GenerateServiceStub(channel)
            await stub.Generate(REQUEST, timeout=10)


async def test_plain_text_is_not_answered_but_for_unix_sockets(serve: Any, tmp_path: Path) -> None:
    tls = server_tls(Authority(tmp_path).issue("server"))
    async with serve("127.0.0.1:0", tls=tls) as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.Generate(REQUEST, timeout=10)  # the fixture's channel has no TLS
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    async with serve(f"unix:{tmp_path}/server.sock", tls=tls) as running:
        await running.stub.Generate(REQUEST)
    async with serve("0.0.0.0:0", tls=tls) as running:
        assert running.address.startswith("0.0.0.0:")


def test_a_certificate_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair, other = authority.issue("server"), authority.issue("other")
    wrong = ServerTlsFiles(certificate=pair.certificate, key=other.key)
    with pytest.raises(StartupError, match=r"cannot be used for TLS.*mismatch"):
        ServerTls(wrong)
    with pytest.raises(StartupError, match=r"cannot read .*absent\.pem: No such file"):
        ServerTls(ServerTlsFiles(certificate=tmp_path / "absent.pem", key=pair.key))
