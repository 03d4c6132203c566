"""`headrace chat`: talks to a server from a terminal, or answers one prompt."""

import argparse
import asyncio
import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence

from headrace.client.aio import AsyncClient
from headrace.client.channel import DEFAULT_DEADLINE_S
from headrace.client.chat import Message
from headrace.client.chat_session import ChatSession, one_shot, show
from headrace.client.connection_flags import ConnectionKeywords, add_connection_flags, connection_keywords
from headrace.client.errors import ServerUnreachable
from headrace.client.options import ChatOptions
from headrace.contract.errors import DeadlineExceeded, HeadraceError

_EXIT_FAILED = 1
_EXIT_INTERRUPTED = 130
_EXIT_PIPE_CLOSED = 141
"""As a shell reports a program that SIGINT or SIGPIPE ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status. Answers go to stdout, everything about them to stderr."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    connection = connection_keywords(parser, arguments)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a character must not end the conversation.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        _run(arguments, connection)
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


def _run(arguments: argparse.Namespace, connection: ConnectionKeywords) -> None:
    options: ChatOptions = {
        "model": arguments.model,
        "temperature": arguments.temperature,
        "seed": arguments.seed,
        "max_new_token_count": arguments.max_new_token_count,
    }
    client = AsyncClient(arguments.target, deadline_s=arguments.deadline_s, **connection)
    # A runner makes Ctrl-C a cancellation. In gRPC's synchronous calls the exception can strike while a lock of
    # the channel is held, and the next call hangs.
    with asyncio.Runner() as runner:
        try:
            if arguments.prompt is None:
                _converse(runner, client, options, arguments)
            else:
                opening = [Message("system", arguments.system)] if arguments.system else []
                messages = [*opening, Message("user", arguments.prompt)]
                show(sys.stderr, runner.run(one_shot(client, messages, options, sys.stdout)) + "\n")
        finally:
            runner.run(client.close())


def _converse(runner: asyncio.Runner, client: AsyncClient, options: ChatOptions, arguments: argparse.Namespace) -> None:
    model = runner.run(client.get_model(arguments.model))
    show(sys.stderr, f"{model.name} at {client.target}. /help lists the commands, Ctrl-D ends.\n")
    # Importing it is what gives `input` line editing and a history; some builds of Python lack it.
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")
    prompt = "> " if sys.stdin.isatty() else ""
    session = ChatSession(client, options, system=arguments.system, screen=sys.stdout)
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            show(sys.stdout, "\n")
            return
        except KeyboardInterrupt:
            show(sys.stdout, "\n(Ctrl-D ends)\n")
            continue
        try:
            if line:
                runner.run(session.take(line))
        except KeyboardInterrupt:
            # The session has said so already.
            continue
        except HeadraceError as error:
            show(sys.stdout, f"\n{explain(error)}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace chat",
        description="Talk to a headrace server. Without --prompt the conversation goes on until Ctrl-D.",
    )
    add_connection_flags(parser)
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
