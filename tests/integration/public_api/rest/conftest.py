"""The sidecar on a real socket, in front of a real router and its fake shards."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from headrace.services.address import parse_address
from headrace.services.channel_tls import ChannelSecurity
from headrace.services.rest.process import listen, make_server
from headrace.services.rest.router_link import RouterLink
from headrace.services.rest.sidecar import Limits, Sidecar
from headrace.services.server_tls import ServerTls
from headrace.services.settings import RestSettings

BODY_LIMIT_BYTES = 200_000


@dataclass
class RestDeployment:
    """A router, a sidecar in front of it, and an HTTP client."""

    router: Any
    sidecar: Sidecar
    http: httpx2.AsyncClient
    base_url: str

    async def post(self, path: str, **body: Any) -> httpx2.Response:
        return await self.http.post(path, json=body)

    async def idle(self) -> None:
        """Waits until the router runs nothing and holds no blocks."""
        await self.router.until(lambda: self.router.stats().running_count + self.router.stats().waiting_count == 0)
        self.router.check_integrity()

    async def raw(self, *pieces: bytes) -> bytes:
        """Sends bytes as they are on a connection of its own, each piece when the one before has had time to be read.

        Returns all that comes until the sidecar closes the connection, or `reset` if that is how it ends.
        """
        host, _, port = self.base_url.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await self.http.get("/health")
            return await asyncio.wait_for(reader.read(), 10)
        except ConnectionResetError:
            return b"reset"
        finally:
            writer.close()


@asynccontextmanager
async def run_sidecar(
    address: str,
    security: ChannelSecurity | None = None,
    tls: ServerTls | None = None,
    tracing: Any = None,
    read_timeout_s: float = 60.0,
    *,
    multiplexes: bool = True,
) -> AsyncIterator[tuple[Sidecar, str]]:
    link = RouterLink([address], message_size_limit_bytes=4 * 2**20, security=security, multiplexes=multiplexes)
    limits = Limits(
        body_size_bytes=BODY_LIMIT_BYTES, read_timeout_s=read_timeout_s, deadline_s=30.0, client_batch_count=8
    )
    sidecar = Sidecar(
        link=link, limits=limits, started_at_s=int(time.time()), is_ending=asyncio.Event(), tracing=tracing
    )
    listener, bound = listen(parse_address("127.0.0.1:0"))
    server = make_server(sidecar, RestSettings(read_timeout_s=read_timeout_s), tls)
    serving = asyncio.ensure_future(server.serve([listener]))
    try:
        await server.wait_started()
        yield sidecar, f"{'https' if tls else 'http'}://{bound}"
    finally:
        server.should_exit = server.force_exit = True
        await serving
        listener.close()
        await link.close()


@pytest.fixture
def deploy_rest(deploy: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a context manager that runs a router, its shards and a sidecar."""

    @asynccontextmanager
    async def run(
        security: ChannelSecurity | None = None,
        sidecar_tls: ServerTls | None = None,
        trust: ssl.SSLContext | None = None,
        rest_tracing: Any = None,
        read_timeout_s: float = 60.0,
        *,
        multiplexes: bool = True,
        **options: Any,
    ) -> AsyncIterator[RestDeployment]:
        async with (
            deploy(**options) as router,
            run_sidecar(
                router.address, security, sidecar_tls, rest_tracing, read_timeout_s, multiplexes=multiplexes
            ) as (sidecar, base_url),
        ):
            async with httpx2.AsyncClient(base_url=base_url, timeout=30, verify=trust or True) as http:
                yield RestDeployment(router, sidecar, http, base_url)

    return run


@pytest.fixture
async def rest(deploy_rest: Callable[..., Any]) -> AsyncIterator[RestDeployment]:
    async with deploy_rest() as running:
        yield running
