"""Serves the example model on a free port, asks it one question, and stops everything again.

Ends the server it started however it ends itself: after the answer, on Ctrl-C,
on SIGTERM and on a failure. The server's log goes to build/demo.log.
"""

import argparse
import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Never

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / "build" / "demo.log"
HEADRACE = str(Path(sys.executable).with_name("headrace"))
MODEL = "smollm2-135m-instruct"
READY = re.compile(r"^headrace serves \S+ on (\S+)$")
STOP_GRACE_S = 15.0
TOKEN_LIMIT = 256


class DemoFailed(Exception):
    """The demo cannot go on; the message says why."""


class Progress:
    """Relays what the server says of its start, and keeps its whole log."""

    def __init__(self, lines: IO[str], log: IO[str]) -> None:
        self._lines = lines
        self._log = log
        self._is_quiet = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Shows nothing more; the log is still kept."""
        self._is_quiet.set()

    def join(self) -> None:
        """Waits until the server has written its last line."""
        self._thread.join(timeout=1)

    def _run(self) -> None:
        for line in self._lines:
            self._log.write(line)
            self._log.flush()
            if not self._is_quiet.is_set():
                self._show(line)

    def _show(self, line: str) -> None:
        with contextlib.suppress(ValueError):  # a line that is no JSON is in the log
            event = json.loads(line)
            if event["event"] == "engine_progressed":
                print(f"   {event['detail']}", flush=True)


@contextlib.contextmanager
def served_model() -> Iterator[str]:
    """Runs a server inside the block and yields its address.

    Raises:
        DemoFailed: the server ended before it was ready.
    """
    LOG.parent.mkdir(exist_ok=True)
    # A port that is free, no wait for load balancers, and a small part of the memory.
    options = ["--port=0", "--propagation-s=0", "--kv-memory=512MiB", "--log-format=json"]
    with (
        LOG.open("w") as log,
        # Ctrl-C is for this process alone, which then ends the server in order.
        subprocess.Popen(
            [HEADRACE, "serve", MODEL, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as server,
    ):
        assert server.stdout is not None
        assert server.stderr is not None
        progress = Progress(server.stderr, log)
        try:
            yield _wait_ready(server.stdout)
        finally:
            progress.end()
            _stop(server)
            progress.join()


def _wait_ready(lines: IO[str]) -> str:
    for line in lines:
        if found := READY.match(line):
            return found[1]
    raise DemoFailed("the server did not start")


def _stop(server: "subprocess.Popen[str]") -> None:
    """Ends the server politely, then firmly; its shards end with it."""
    server.terminate()
    try:
        server.wait(STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        server.kill()


def ask(address: str, prompt: str) -> None:
    """Puts one question to the server and streams the answer to standard output.

    Raises:
        DemoFailed: there was no answer.
    """
    limit = f"--max-new-token-count={TOKEN_LIMIT}"
    command = [HEADRACE, "chat", f"--target={address}", "--temperature=0", limit, f"--prompt={prompt}"]
    if subprocess.run(command, check=False).returncode != 0:
        raise DemoFailed("there was no answer")


def main() -> int:
    """Runs the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("prompt", help="what to ask")
    prompt: str = parser.parse_args().prompt
    signal.signal(signal.SIGTERM, _end)
    try:
        print(f"== starting {MODEL}; the log is in {LOG.relative_to(ROOT)}", flush=True)
        with served_model() as address:
            print(f"== it serves on {address}\n\n> {prompt}\n", flush=True)
            ask(address, prompt)
    except DemoFailed as failure:
        print(f"\n{failure}; the end of {LOG.relative_to(ROOT)}:", file=sys.stderr)
        print("".join(LOG.read_text().splitlines(keepends=True)[-12:]), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _end(_signal_number: int, _frame: object) -> Never:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
