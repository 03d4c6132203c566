"""The REST sidecar of `headrace serve`: a process of its own, restarted when it dies, and drained with the router."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Literal

from headrace.contract.clock import Clock
from headrace.contract.errors import StartupError
from headrace.services.backoff import Backoff
from headrace.services.child_process import STOP_GRACE_S, exit_of, start_child
from headrace.services.cli import EXIT_CANNOT_START
from headrace.services.log import Event, logger

HEALTHY_AFTER_S = 30.0
"""A sidecar that lived so long did not die of its start."""

RESTART_FIRST_S, RESTART_LIMIT_S = 0.1, 30.0


def sidecar_command(*arguments: str) -> list[str]:
    """Returns the command line of a sidecar; `exit_with_parent` has to be among its settings."""
    return [sys.executable, "-m", "headrace.services", "rest", *arguments]


class SidecarProcess:
    """Keeps one sidecar running."""

    def __init__(self, command: Sequence[str], *, clock: Clock) -> None:
        self._command = command
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()

    async def run(self, ready: "asyncio.Future[None]") -> None:
        """Runs the sidecar from when the router is ready, since before it could only refuse, until it was drained.

        Raises:
            StartupError: it says on its first start that it cannot start as it was asked to.
        """
        stopping = asyncio.ensure_future(self._stopping.wait())
        waited_for: list[asyncio.Future[None] | asyncio.Future[Literal[True]]] = [ready, stopping]
        try:
            await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
            await self._keep_running(stopping)
        finally:
            stopping.cancel()
            self._ended.set()

    async def drain(self, hurry: asyncio.Event) -> None:
        """Lets the sidecar end its requests, and waits for it; `hurry` tells it not to wait for anybody."""
        self._stopping.set()
        self._signal(signal.SIGTERM)
        ended = asyncio.ensure_future(self._ended.wait())
        hurrying = asyncio.ensure_future(hurry.wait())
        await asyncio.wait([ended, hurrying], return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        if not ended.done():
            self._signal(signal.SIGTERM)
            await asyncio.wait([ended], timeout=STOP_GRACE_S)
            self._signal(signal.SIGKILL)
            await ended

    async def _keep_running(self, stopping: "asyncio.Future[Literal[True]]") -> None:
        backoff = Backoff(first_s=RESTART_FIRST_S, limit_s=RESTART_LIMIT_S)
        is_first = True
        while not self._stopping.is_set():
            started_s = self._clock.now()
            exit_code = await self._run_once()
            if self._stopping.is_set():
                return
            if is_first and exit_code == EXIT_CANNOT_START:
                raise StartupError("the REST sidecar cannot start; its own message says why")
            is_first = False
            if self._clock.now() - started_s >= HEALTHY_AFTER_S:
                backoff.reset()
            wait_s = backoff.fail()
            logger().warning(Event.SIDECAR_EXITED, exit_code=exit_code, restart_in_s=wait_s)
            await asyncio.wait([stopping], timeout=wait_s)

    async def _run_once(self) -> int:
        with start_child(self._command) as process:
            self._process = process
            logger().info(Event.SIDECAR_STARTED, pid=process.pid)
            try:
                await exit_of(process)
            finally:
                if process.poll() is None:
                    process.kill()
            return process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
