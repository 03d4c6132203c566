"""Proves the sidecar by clients that need environments of their own: LangChain, `text-generation`, schemathesis, curl.

Starts a server of the example model and a sidecar on free ports, and ends both.
`make test-clients` makes the environments, in build/clients.
"""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / "build" / "clients"
CHECKS = ROOT / "tests" / "clients"
LOG = ENVIRONMENTS / "server.log"
MODEL = "smollm2-135m-instruct"
ADDRESS = re.compile(r" on (\S+)")
STOP_GRACE_S = 20.0
EXAMPLE_LIMIT = 40
"""Requests that schemathesis makes for each operation and phase."""

# A short context and a fake engine: what is to be found is in the protocol, and a model only takes time.
FAKE = ("--engine=fake", "--context-token-limit=64", "--prompt-token-limit=48")
# The limits of a model are not in the document, so a body that fits it may still be refused.
EXCLUDED_CHECKS = "positive_data_acceptance"


def main() -> int:
    """Runs every check; returns the exit status."""
    with LOG.open("w") as log:
        with serving(log) as url:
            run([str(python("current")), str(CHECKS / "current.py"), url])
            run([str(python("tgi")), str(CHECKS / "text_generation_client.py"), url])
            run([str(CHECKS / "curl.sh"), url])
        with serving(log, *FAKE) as url:
            schemathesis = str(python("current").with_name("st"))
            # Of the times that it makes up, most are too short for an answer.
            header = ("--header", "x-request-timeout-s: 30")
            options = (
                *header,
                "--exclude-checks",
                EXCLUDED_CHECKS,
                "--max-examples",
                str(EXAMPLE_LIMIT),
                "--seed",
                "1",
            )
            run([schemathesis, "run", f"{url}/openapi.json", "--no-color", *options])
    return 0


def python(environment: str) -> Path:
    """Returns the interpreter of an environment."""
    return ENVIRONMENTS / environment / "bin" / "python"


def run(command: list[str]) -> None:
    """Runs a check.

    Raises:
        SystemExit: it failed.
    """
    if status := subprocess.run(command, check=False).returncode:
        sys.exit(f"{Path(command[-1]).name if len(command) == 2 else ' '.join(command[:2])} failed ({status})")


@contextlib.contextmanager
def serving(log: IO[str], *flags: str) -> Iterator[str]:
    """Runs a server and a sidecar, and yields where the sidecar is reached."""
    with (
        process(log, "serve", MODEL, "--listen=127.0.0.1:0", *flags) as router,
        process(log, "rest", f"--router={router}", "--listen=127.0.0.1:0", "--propagation-s=0") as sidecar,
    ):
        yield f"http://{sidecar}"


@contextlib.contextmanager
def process(log: IO[str], *arguments: str) -> Iterator[str]:
    """Runs `headrace`, and yields the address that it prints when it is ready."""
    command = [sys.executable, "-m", "headrace.services", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as running:
        try:
            assert running.stdout is not None
            found = ADDRESS.search(running.stdout.readline())
            if found is None:
                sys.exit(f"headrace {arguments[0]} did not start; {LOG} says why")
            yield found[1]
        finally:
            running.terminate()
            try:
                running.wait(STOP_GRACE_S)
            except subprocess.TimeoutExpired:
                running.kill()


if __name__ == "__main__":
    sys.exit(main())
