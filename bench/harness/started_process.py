"""A process that the harness starts: it says in a line that it is ready, and is ended in order."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

_LINE_LIMIT_BYTES = 2**26


class ProcessEnded(Exception):
    """It ended before it answered; the message says where its log is."""


class StartedProcess:
    """What headrace, its sidecar and the drivers of peers have in common."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    @classmethod
    async def start(
        cls, command: Sequence[str], *, log: Path, environment: Mapping[str, str], is_apart: bool = False
    ) -> Self:
        """Starts it.

        Args:
            command: what to run.
            log: file for what it writes to standard error.
            environment: all of its environment.
            is_apart: whether Ctrl-C is for the harness alone, which then ends it.
        """
        with log.open("w") as errors:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env=environment,
                limit=_LINE_LIMIT_BYTES,
                start_new_session=is_apart,
            )
        return cls(process, log)

    @property
    def process_id(self) -> int:
        """Its own; it may have children."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it is known to be gone."""
        return self._process.returncode is not None

    async def write(self, line: bytes) -> None:
        """Writes to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        await self._process.stdin.drain()

    async def read_line(self, timeout_s: float) -> bytes:
        """Returns its next line.

        Raises:
            ProcessEnded: there is none.
            TimeoutError: it took longer.
        """
        assert self._process.stdout is not None
        async with asyncio.timeout(timeout_s):
            line = await self._process.stdout.readline()
            if not line:
                raise ProcessEnded(f"it ended with status {await self._process.wait()}; its log is {self._log}")
        return line

    def terminate(self) -> None:
        """Asks it to end by a signal. Safe for one that ended."""
        if not self.has_ended:
            self._process.terminate()

    async def wait(self, timeout_s: float) -> None:
        """Closes its standard input and waits for its end, which is made to come after a while."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(timeout_s):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
