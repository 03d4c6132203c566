"""`headrace chat`: talks to a server from a terminal, or answers one prompt."""

import argparse
import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence

from headrace.client.channel import DEFAULT_DEADLINE_S, DEFAULT_TARGET
from headrace.client.chat import Message
from headrace.client.chat_session import ChatSession, greeting, one_shot
from headrace.client.errors import ServerUnreachable
from headrace.client.options import ChatOptions
from headrace.client.sync import Client
from headrace.contract.errors import DeadlineExceeded, HeadraceError

_EXIT_FAILED = 1
_EXIT_INTERRUPTED = 130
_EXIT_PIPE_CLOSED = 141
"""As a shell reports a program that SIGINT or SIGPIPE ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status. Answers go to stdout, everything about them to stderr."""
    arguments = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a character must not end the conversation.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        _run(arguments)
    except HeadraceError as error:
        sys.stderr.write(f"headrace chat: {explain(error)}\n")
        return _EXIT_FAILED
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_PIPE_CLOSED
    return 0


def explain(error: HeadraceError) -> str:
    """Returns what a person can do about an error."""
    if isinstance(error, ServerUnreachable):
        return (
            f"cannot reach a server at {error.target}: {error.message}\n"
            "Start one with `headrace serve MODEL`, or name another with --target."
        )
    if isinstance(error, DeadlineExceeded):
        return "the answer took longer than the deadline; --deadline-s sets another"
    if error.retry_after_s is not None:
        return f"{error.message} (try again in {error.retry_after_s:.1f} s)"
    return str(error)


def _run(arguments: argparse.Namespace) -> None:
    options: ChatOptions = {
        "model": arguments.model,
        "temperature": arguments.temperature,
        "seed": arguments.seed,
        "max_new_token_count": arguments.max_new_token_count,
    }
    with Client(arguments.target, deadline_s=arguments.deadline_s) as client:
        if arguments.prompt is not None:
            opening = [Message("system", arguments.system)] if arguments.system else []
            stats = one_shot(client, [*opening, Message("user", arguments.prompt)], options, sys.stdout)
            sys.stderr.write(f"{stats}\n")
            return
        model = client.get_model(arguments.model)
        sys.stderr.write(f"{greeting(model, client.target)}\n")
        # Importing it is what gives `input` line editing and a history; some builds of Python lack it.
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")
        session = ChatSession(client, options, system=arguments.system, screen=sys.stdout)
        session.run(input if sys.stdin.isatty() else lambda _: input(), explain)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace chat",
        description="Talk to a headrace server. Without --prompt the conversation goes on until Ctrl-D.",
    )
    parser.add_argument("--target", default=DEFAULT_TARGET, help="HOST:PORT of the server (default: %(default)s)")
    parser.add_argument("--model", default="", help="a served model; not needed if there is just one")
    parser.add_argument("--system", default="", metavar="TEXT", help="a system message to begin with")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this and end; speed goes to stderr")
    parser.add_argument("--temperature", type=float, help="0 always takes the likeliest token (default: the model's)")
    parser.add_argument("--seed", type=int, help="makes answers repeatable")
    parser.add_argument("--max-new-token-count", type=int, metavar="N", help="longest answer in tokens")
    parser.add_argument(
        "--deadline-s",
        type=float,
        default=DEFAULT_DEADLINE_S,
        metavar="SECONDS",
        help="longest wait for a whole answer (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
