"""What scripts that measure on one server of their own have in common: its flags, its start and its end."""

import argparse
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from harness.headrace_server import HeadraceServer
from headrace.client.aio import AsyncClient

Measure = Callable[[AsyncClient, argparse.Namespace], Awaitable[None]]


def create_parser(description: str | None, *, token_count: int) -> argparse.ArgumentParser:
    """Returns a parser of the flags that all of them have; `token_count` is how long a completion is unless told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=token_count)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--option", action="append", default=[], help="a further flag of headrace serve")
    return parser


async def measure_on_server(measure: Measure, arguments: argparse.Namespace, *options: str) -> None:
    """Runs a server for the time of a measurement; flags that the user gives come after `options`.

    Raises:
        ProcessEnded: the server ended before it served.
    """
    with tempfile.TemporaryDirectory() as folder:
        server = await HeadraceServer.start(
            arguments.model, f"--dtype={arguments.dtype}", *options, *arguments.option, log=Path(folder) / "log"
        )
        try:
            await measure(server.client, arguments)
        finally:
            await server.stop()
