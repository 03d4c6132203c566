"""`headrace serve` as its users start it, and jobs through its Python client."""

import asyncio
import os
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from harness.started_process import StartedProcess
from harness.traces import Trace
from harness.workloads import Request
from headrace.client import AsyncClient
from headrace.client.bench_runner import NO_RETRIES
from headrace.client.operations import Load

_START_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 20.0
_REQUEST_DEADLINE_S = 300.0


class HeadraceServer:
    """A router and a shard, each in a process of its own, and a client here."""

    def __init__(self, process: StartedProcess, address: str) -> None:
        self._process = process
        self.client = _client(address, multiplexes=True)
        """Its streams share calls."""
        self.client_of_calls = _client(address, multiplexes=False)
        """Each of its streams is a call."""
        self.address = address

    @classmethod
    async def start(cls, model: str, *options: str, log: Path) -> Self:
        """Starts a server on a free port and waits until it serves.

        Raises:
            ProcessEnded: it ended first.
        """
        command = [
            sys.executable, "-m", "headrace.services", "serve", model, "--port=0", "--propagation-s=0",
            "--thread-count=2", *options,
        ]  # fmt: skip
        process = await StartedProcess.start(command, log=log, environment=os.environ | {"HF_HUB_OFFLINE": "1"})
        address = (await process.read_line(_START_TIMEOUT_S)).decode().split()[-1]
        return cls(process, address)

    @property
    def process_id(self) -> int:
        """The router's own; the shard is its child."""
        return self._process.process_id

    async def load(self) -> Load:
        """Returns what the router counted so far."""
        return await self.client.get_load(deadline_s=10.0)

    async def run(self, requests: Sequence[Request], client: AsyncClient | None = None) -> list[Trace]:
        """Runs a job, each request on a stream of its own, through the client whose streams share calls or another.

        Raises:
            HeadraceError: a request failed.
        """
        salt = secrets.token_hex(8)
        began_s = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(self._stream(client or self.client, request, began_s, salt)) for request in requests
            ]
        return [task.result() for task in running]

    async def _stream(self, client: AsyncClient, request: Request, began_s: float, salt: str) -> Trace:
        await asyncio.sleep(began_s + request.due_s - time.perf_counter())
        times_s: list[float] = []
        stream = client.stream(
            request.prompt,
            temperature=0.0,
            max_new_token_count=request.new_token_count,
            ignore_end_of_sequence=True,
            cache_salt=salt,
        )
        async with stream:
            async for delta in stream:
                times_s.extend([time.perf_counter() - began_s] * len(delta.token_ids))
        assert len(times_s) == request.new_token_count
        return Trace(prompt_token_count=len(request.prompt), due_s=request.due_s, token_times_s=tuple(times_s))

    async def stop(self) -> None:
        """Ends the server and waits for it. Safe for one that ended."""
        await self.client.close()
        await self.client_of_calls.close()
        self._process.terminate()
        await self._process.wait(_STOP_TIMEOUT_S)


def _client(address: str, *, multiplexes: bool) -> AsyncClient:
    return AsyncClient(address, deadline_s=_REQUEST_DEADLINE_S, channel_options=(NO_RETRIES,), multiplexes=multiplexes)
