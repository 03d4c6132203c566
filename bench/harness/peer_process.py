"""A driver of a peer, from this side: started once, given one job after the other."""

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from harness.processes import send_signal
from harness.started_process import ProcessEnded, StartedProcess
from harness.traces import Trace
from harness.workloads import Request

_START_TIMEOUT_S = 300.0
_JOB_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 15.0


class PeerFailed(Exception):
    """A driver ended, or said something else than it should."""


class PeerProcess:
    """One peer, with its model loaded."""

    def __init__(self, process: StartedProcess, version: str) -> None:
        self._process = process
        self.version = version

    @classmethod
    async def start(cls, command: Sequence[str], *, environment: dict[str, str], log: Path) -> Self:
        """Starts a driver and waits until it has loaded its model.

        Raises:
            PeerFailed: it ended first.
        """
        peer = cls(await StartedProcess.start(command, log=log, environment=environment, is_apart=True), "")
        try:
            peer.version = str(read_ready(await peer._read(_START_TIMEOUT_S)))
        except BaseException:
            await peer.stop()
            raise
        peer.freeze()
        return peer

    @property
    def process_id(self) -> int:
        """The driver's own."""
        return self._process.process_id

    def freeze(self) -> None:
        """Stops the driver and its children: some peers spin for a while after a job, at the next one's expense."""
        send_signal(self.process_id, signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets them go on."""
        send_signal(self.process_id, signal.SIGCONT)

    async def run(self, requests: Sequence[Request]) -> list[Trace]:
        """Runs a job between a thaw and a freeze.

        Raises:
            PeerFailed: the driver ended.
        """
        self.thaw()
        await self._process.write(job_line(requests))
        answer = await self._read(_JOB_TIMEOUT_S)
        self.freeze()
        return read_traces(answer, requests)

    async def stop(self) -> None:
        """Ends the driver, politely first. Safe for one that ended."""
        if not self._process.has_ended:
            self.thaw()
        await self._process.wait(_STOP_TIMEOUT_S)

    async def _read(self, timeout_s: float) -> bytes:
        try:
            return await self._process.read_line(timeout_s)
        except ProcessEnded as error:
            raise PeerFailed(f"the driver: {error}") from error


def job_line(requests: Sequence[Request]) -> bytes:
    """Returns a job as drivers read it."""
    job = [
        {"prompt": list(request.prompt), "new_token_count": request.new_token_count, "due_s": request.due_s}
        for request in requests
    ]
    return json.dumps({"requests": job}).encode() + b"\n"


def read_ready(line: bytes) -> str:
    """Returns the version of the peer that its driver's first line names.

    Raises:
        PeerFailed: it is another line.
    """
    message = json.loads(line)
    if "ready" not in message:
        raise PeerFailed(f"the driver began with {message}")
    return str(message["ready"]["version"])


def read_traces(line: bytes, requests: Sequence[Request]) -> list[Trace]:
    """Returns what a driver's answer says of each request.

    Raises:
        PeerFailed: a request got another number of tokens than it asked for.
    """
    times_s = json.loads(line)["token_times_s"]
    wanted, came = [request.new_token_count for request in requests], [len(row) for row in times_s]
    if wanted != came:
        raise PeerFailed(f"the requests asked for {wanted} tokens and got {came}")
    return [
        Trace(prompt_token_count=len(request.prompt), due_s=request.due_s, token_times_s=tuple(row))
        for request, row in zip(requests, times_s, strict=True)
    ]


def clean_environment(inherited: dict[str, str], bin_folder: Path) -> dict[str, str]:
    """Returns the environment for a driver: its own tools first, and none of this project's packages."""
    kept = {name: value for name, value in inherited.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return kept | {"PATH": f"{bin_folder}:{inherited.get('PATH', '')}"}


def python_of(environment: Path) -> Path:
    """Returns the interpreter of a virtual environment."""
    return environment / "bin" / ("python.exe" if sys.platform == "win32" else "python")
