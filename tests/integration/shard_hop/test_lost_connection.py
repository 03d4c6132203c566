"""A shard that goes silent is noticed, whether its machine says so or not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from headrace.contract.errors import ShardLost
from headrace.contract.step import StepPlan
from headrace.services.shard_connector import ShardConnector

from .conftest import Shard, admission, run_shard


class Cable:
    """Forwards bytes between router and shard until it is cut."""

    def __init__(self, shard: Shard) -> None:
        self._host, self._port = shard.address.rsplit(":", 1)
        self._intact = asyncio.Event()
        self._intact.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    def cut(self) -> None:
        """Swallows every byte from now on; neither end hears of it."""
        self._intact.clear()

    def break_off(self) -> None:
        """Closes the connections, as a dying process's kernel does."""
        for writer in self._writers:
            writer.transport.abort()

    @asynccontextmanager
    async def address(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        try:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            self.break_off()
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._host, int(self._port))
        self._writers += [writer, far_writer]
        for source, target in ((reader, far_writer), (far_reader, writer)):
            self._tasks.add(asyncio.create_task(self._forward(source, target)))

    async def _forward(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            await self._intact.wait()
            target.write(data)


@pytest.mark.parametrize("is_busy", [False, True], ids=["idle", "busy"])
async def test_a_half_open_connection_is_noticed(is_busy: bool) -> None:
    async with run_shard("127.0.0.1:0") as shard:
        shard.serve()
        cable = Cable(shard)
        async with cable.address() as address:
            connector = ShardConnector(message_size_limit_bytes=2**20, ping_timeout_s=0.3)
            engine = await connector.connect((address,), lambda _detail: None)
            await engine.step(admission(1))
            cable.cut()
            step = engine.step(StepPlan(step_id=2)) if is_busy else None
            lost = await asyncio.wait_for(engine.wait_lost(), 10)
            assert "ping timeout" in lost.message
            if step is not None:
                with pytest.raises(ShardLost):
                    await step
            await engine.aclose()


async def test_a_broken_connection_is_noticed_at_once() -> None:
    async with run_shard("127.0.0.1:0") as shard:
        shard.serve()
        cable = Cable(shard)
        async with cable.address() as address:
            engine = await ShardConnector(message_size_limit_bytes=2**20).connect((address,), lambda _detail: None)
            await engine.step(admission(1))
            step = engine.step(StepPlan(step_id=2))
            cable.break_off()
            await asyncio.wait_for(engine.wait_lost(), 2)
            with pytest.raises(ShardLost):
                await step
            await engine.aclose()
