"""A server whose only service does what the test says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from headrace.services.address import parse_address
from headrace.services.channel_options import ServerLimits
from headrace.services.grpc_server import GrpcServer
from headrace.v1 import generate_service_pb2 as pb
from headrace.v1.generate_service_pb2_grpc import (
    GenerateServiceServicer,
    GenerateServiceStub,
    add_GenerateServiceServicer_to_server,
)

Unary = Callable[[], Awaitable[pb.GenerateResponse]]
Stream = Callable[[], AsyncIterator[pb.GenerateStreamResponse]]

SERVICE = pb.DESCRIPTOR.services_by_name["GenerateService"]


async def nothing() -> pb.GenerateResponse:
    return pb.GenerateResponse()


async def nothing_at_all() -> AsyncIterator[pb.GenerateStreamResponse]:
    return
    yield


class Scripted(GenerateServiceServicer):
    """Calls what the test has put in."""

    def __init__(self) -> None:
        self.unary: Unary = nothing
        self.stream: Stream = nothing_at_all
        self.entered = asyncio.Event()

    async def Generate(self, _request: pb.GenerateRequest, _context: Any) -> pb.GenerateResponse:  # noqa: N802
        self.entered.set()
        return await self.unary()

    async def GenerateStream(  # noqa: N802
        self, _request: pb.GenerateRequest, _context: Any
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        self.entered.set()
        async for response in self.stream():
            yield response


class Running:
    """A server, its scripted service and a channel to it."""

    def __init__(self, server: GrpcServer, servicer: Scripted, address: str, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.servicer = servicer
        self.address = address
        self.channel = channel
        self.stub: Any = GenerateServiceStub(channel)


@asynccontextmanager
async def run_server(listen: str, limits: ServerLimits | None = None, **options: Any) -> AsyncIterator[Running]:
    server = GrpcServer(limits or ServerLimits(), **options)
    servicer = Scripted()
    server.add(SERVICE, lambda grpc_server: add_GenerateServiceServicer_to_server(servicer, grpc_server))
    [address] = await server.start([parse_address(listen)])
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield Running(server, servicer, address, channel)
    finally:
        await server.stop()


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with run_server(f"unix:{tmp_path}/server.sock") as server:
        yield server


@pytest.fixture
def serve() -> Callable[..., Any]:
    """Returns a context manager that runs a server with options of `GrpcServer`."""
    return run_server
