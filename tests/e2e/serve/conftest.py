"""Real processes: `headrace` as an operator starts it, over fake engines and the real model."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from headrace.v1.generate_service_pb2_grpc import GenerateServiceStub
from headrace.v1.health_service_pb2_grpc import HealthServiceStub
from headrace.v1.router_service_pb2_grpc import RouterServiceStub

READY = re.compile(r"headrace serves (\S+) on (\S+)")
LISTENS = re.compile(r'"addresses": \["([^"]+)"\]')


@dataclass
class Program:
    """A `headrace` process and what it has written."""

    process: asyncio.subprocess.Process
    log_path: Path
    output: list[str] = field(default_factory=list)

    def log(self) -> str:
        return self.log_path.read_text()

    async def wait_output(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """Waits for a line on standard output."""
        assert self.process.stdout is not None
        while line := (await self.process.stdout.readline()).decode():
            self.output.append(line)
            if match := pattern.search(line):
                return match
        raise AssertionError(f"the process ended: {self.log()}")

    async def wait_log(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """Waits for a line in the log."""
        while (match := pattern.search(self.log())) is None:
            assert self.process.returncode is None, self.log()
            await asyncio.sleep(0.02)
        return match

    def children(self) -> list[int]:
        """Process ids of its children."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.process.wait()


@dataclass
class Served:
    """A router process that serves, and stubs to call it."""

    program: Program
    address: str
    channel: grpc.aio.Channel

    @property
    def generate(self) -> Any:
        return GenerateServiceStub(self.channel)

    @property
    def router(self) -> Any:
        return RouterServiceStub(self.channel)

    @property
    def health(self) -> Any:
        return HealthServiceStub(self.channel)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(name="is_alive")
def is_alive_fixture() -> Callable[[int], bool]:
    return is_alive


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., Any]:
    """Returns a context manager that runs `headrace` with arguments."""
    count = 0

    @asynccontextmanager
    async def run(*arguments: str, **environment: str) -> AsyncIterator[Program]:
        nonlocal count
        count += 1
        log_path = tmp_path / f"log-{count}.jsonl"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        with log_path.open("w") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "headrace.services",
                *arguments,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**inherited, **environment},
            )
        program = Program(process, log_path)
        try:
            yield program
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    return run


@pytest.fixture
def serve(launch: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a context manager that runs `headrace serve` or `router` until it is ready."""

    @asynccontextmanager
    async def run(command: str, *arguments: str, model: str = "smollm2-135m-instruct") -> AsyncIterator[Served]:
        flags = (model, "--listen=127.0.0.1:0", "--served-model-name=test-model")
        async with launch(command, *flags, *arguments) as program:
            address = (await program.wait_output(READY))[2]
            async with grpc.aio.insecure_channel(address) as channel:
                yield Served(program, address, channel)

    return run
