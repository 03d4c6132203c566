"""The command `headrace`: finds the subcommand and imports only what that one needs."""

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import NamedTuple, cast

from headrace.contract.errors import StartupError


class Command(NamedTuple):
    """A subcommand and where it is."""

    target: str
    """Module and function."""
    extra: str
    """The extra that installs what it needs; empty for the base install."""
    summary: str


COMMANDS = {
    "serve": Command(
        "headrace.services.router_process:main_serve", "router,shard", "a router and its shards, supervised"
    ),
    "router": Command("headrace.services.router_process:main", "router", "a router for shards that run elsewhere"),
    "shard": Command("headrace.services.shard_process:main", "shard", "a model server for one router"),
    "rest": Command(
        "headrace.services.rest.process:main", "rest", "HTTP in the protocols of OpenAI, TGI and Anthropic"
    ),
    "chat": Command("headrace.client.chat_cli:main", "", "a conversation with a server, in the terminal"),
    "bench": Command("headrace.client.bench_cli:main", "", "load on a running server, and how fast it answers"),
    "key": Command(
        "headrace.services.key_command:main", "router", "a key for callers, and its entry in the access file"
    ),
    "watermark": Command("headrace.client.watermark_cli:main", "", "whether a text carries a watermark"),
}

EXIT_CANNOT_START = 2
"""The process cannot start as it was asked to; 1 is left to crashes. The supervisor of shards tells them apart."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand and returns the process's exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given[0] if given else "--help"
    if name in {"-h", "--help", "help"}:
        sys.stdout.write(usage())
        return 0 if given else EXIT_CANNOT_START
    if name in {"-V", "--version", "version"}:
        sys.stdout.write(f"headrace {version('headrace')}\n")
        return 0
    command = COMMANDS.get(name)
    if command is None:
        sys.stderr.write(f"headrace: unknown command {name!r}; there are: {', '.join(COMMANDS)}\n")
        return EXIT_CANNOT_START
    _tune_grpc(name)
    try:
        return _load(name, command)(given[1:])
    except StartupError as error:
        sys.stderr.write(f"headrace {name}: {error.message}\n")
        return EXIT_CANNOT_START
    except KeyboardInterrupt:
        return 130


def _tune_grpc(name: str) -> None:
    """Sets what gRPC's C core reads from the environment when it is imported, where the operator has not."""
    # It writes what it thinks of every closed connection to standard error, past our log.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    if name == "rest":
        # It hands each message that comes to two or three threads of a pool, one after the other, for the sake of
        # clients with many connections. A sidecar has one or a few: without these switches, its poller thread reads
        # the message itself, and a token costs a fifth less.
        os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client")


def usage() -> str:
    """Returns the list of subcommands."""
    rows = "".join(f"  {name:<9} {command.summary}\n" for name, command in COMMANDS.items())
    return f"usage: headrace COMMAND [--help]\n\n{rows}  version   the version\n"


def _load(name: str, command: Command) -> Callable[[Sequence[str]], int]:
    module_name, _, function_name = command.target.partition(":")
    try:
        return cast("Callable[[Sequence[str]], int]", getattr(import_module(module_name), function_name))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("headrace"):
            raise
        raise StartupError(
            f"the package {error.name!r} is missing; install what {name} needs with: "
            f"pip install 'headrace[{command.extra}]'"
        ) from error
