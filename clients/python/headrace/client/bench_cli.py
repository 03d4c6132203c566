"""`headrace bench`: puts load on a server and shows how fast it answers."""

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from headrace.client.aio import AsyncClient
from headrace.client.bench_load import Pace, Workload
from headrace.client.bench_profile import profile_table
from headrace.client.bench_runner import NO_RETRIES, LoadRunner
from headrace.client.bench_summary import RequestRecord, Summary
from headrace.client.bench_table import as_json, heading, progress_bar, table
from headrace.client.chat_cli import explain
from headrace.client.connection_flags import ConnectionKeywords, add_connection_flags, connection_keywords
from headrace.client.operations import Model
from headrace.contract.errors import HeadraceError

_EXIT_FAILED = 1
_EXIT_USAGE = 2
_EXIT_INTERRUPTED = 130
_DEFAULT_DURATION_S = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0 only if every request ended well.

    Results go to stdout, progress and errors to stderr.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    connection = connection_keywords(parser, arguments)
    try:
        workload, paces = _workload(arguments), _paces(arguments)
        summaries = asyncio.run(_run(arguments, connection, workload, paces))
    except ValueError as error:
        sys.stderr.write(f"headrace bench: {error}\n")
        return _EXIT_USAGE
    except HeadraceError as error:
        sys.stderr.write(f"headrace bench: {explain(error)}\n")
        return _EXIT_FAILED
    except OSError as error:
        sys.stderr.write(f"headrace bench: cannot write the results: {error}\n")
        return _EXIT_FAILED
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    return 0 if all(summary.completed_count == summary.request_count for summary in summaries) else _EXIT_FAILED


async def _run(
    arguments: argparse.Namespace, connection: ConnectionKeywords, workload: Workload, paces: Sequence[Pace]
) -> list[Summary]:
    """Runs the loads one after the other.

    Raises:
        HeadraceError: the server cannot be asked.
        OSError: the file of results cannot be written.
        ValueError: the requests are too long for the model.
    """
    async with AsyncClient(arguments.target, deadline_s=None, channel_options=(NO_RETRIES,), **connection) as client:
        model = await client.get_model(arguments.model, deadline_s=10.0)
        workload.check(model.limits)
        runner = LoadRunner(client, workload, model=model.name, vocabulary_size=model.limits.vocabulary_size)
        sys.stdout.write(f"{heading(model.name, client.target, workload)}\n")
        if arguments.warmup_request_count:
            await runner.run(Pace(stream_count=1, request_count=arguments.warmup_request_count))
        summaries: list[Summary] = []
        for pace in paces:
            with _Progress(pace) as progress:
                summaries.append(await runner.run(pace, progress))
            sys.stdout.write(f"\n{table(pace, summaries[-1])}\n")
            if arguments.profile:
                sys.stdout.write(_profile_of(summaries[-1]))
            sys.stdout.flush()
    if arguments.json is not None:
        loads = [as_json(pace, summary) for pace, summary in zip(paces, summaries, strict=True)]
        result = _circumstances(client.target, model, workload) | {"loads": loads}
        await asyncio.to_thread(_write, arguments.json, result)
    return summaries


class _Progress:
    """A line on a terminal that is renewed as requests end; nothing elsewhere."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._began_s = time.monotonic()
        self._ended_count = 0
        self._write: Callable[[str], object] = sys.stderr.write if sys.stderr.isatty() else lambda _: None

    def __enter__(self) -> "_Progress":
        self._write(progress_bar(self._pace.title, 0.0, 0))
        return self

    def __exit__(self, *_: object) -> None:
        self._write("\r\033[K")

    def __call__(self, _: RequestRecord) -> None:
        self._ended_count += 1
        shares = [0.0]
        if self._pace.request_count is not None:
            shares.append(self._ended_count / self._pace.request_count)
        if self._pace.duration_s is not None:
            shares.append((time.monotonic() - self._began_s) / self._pace.duration_s)
        self._write(progress_bar(self._pace.title, max(shares), self._ended_count))


def _profile_of(summary: Summary) -> str:
    if summary.profile is None:
        return "  the server does not tell where the time of its steps goes\n"
    return f"{profile_table(summary.profile)}\n"


def _write(path: Path, result: dict[str, object]) -> None:
    path.write_text(json.dumps(result, indent=2) + "\n")


def _circumstances(target: str, model: Model, workload: Workload) -> dict[str, object]:
    """Returns what one has to know to compare the numbers with others."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "target": target,
        "model": {"name": model.name, "engine": model.engine, "weight_type": model.weight_type},
        "workload": asdict(workload),
        "versions": {
            "headrace": version("headrace"),
            "grpcio": version("grpcio"),
            "protobuf": version("protobuf"),
            "python": platform.python_version(),
        },
        "client_machine": {
            "system": f"{platform.system()} {platform.release()}",
            "processor": platform.machine(),
            "cpu_count": os.cpu_count(),
        },
    }


def _workload(arguments: argparse.Namespace) -> Workload:
    return Workload(
        prompt_token_count=arguments.prompt_token_count,
        new_token_count=arguments.new_token_count,
        shared_prefix_token_count=arguments.shared_prefix_token_count,
        seed=arguments.seed,
    )


def _paces(arguments: argparse.Namespace) -> list[Pace]:
    duration_s, request_count = arguments.duration_s, arguments.request_count
    if duration_s is None and request_count is None:
        duration_s = _DEFAULT_DURATION_S
    if arguments.rate is not None:
        return [Pace(rate_per_s=arguments.rate, request_count=request_count, duration_s=duration_s)]
    return [
        Pace(stream_count=stream_count, request_count=request_count, duration_s=duration_s)
        for stream_count in arguments.streams
    ]


def _counts(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, or several with commas between them") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace bench",
        description="Put load on a running headrace server and show how fast it answers. Prompts are random token ids; "
        "answers are greedy and have a fixed length. Refused requests are counted, not tried again.",
    )
    add_connection_flags(parser)
    parser.add_argument("--model", default="", help="a served model; not needed if there is just one")
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument(
        "--streams",
        type=_counts,
        default=[1],
        metavar="N[,N...]",
        help="closed loop: so many requests at a time, each followed by the next; several are run in turn (default: 1)",
    )
    loop.add_argument(
        "--rate",
        type=float,
        metavar="R",
        help="open loop: R requests per second on average, at random, however slow the answers are",
    )
    parser.add_argument("--request-count", type=int, metavar="N", help="end each load after N requests")
    parser.add_argument(
        "--duration-s",
        "--duration",
        type=float,
        metavar="SECONDS",
        help=f"end each load after this long (default: {_DEFAULT_DURATION_S:g}, unless --request-count is given)",
    )
    for name, default, meaning in (
        ("prompt-token-count", 128, "length of each prompt"),
        ("new-token-count", 64, "length of each answer"),
        ("shared-prefix-token-count", 0, "first tokens of the prompt that all requests share"),
        ("warmup-request-count", 2, "requests before the first load, which are not counted"),
        ("seed", 0, "decides the prompts and when requests come"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{meaning} (default: {default})")
    parser.add_argument("--profile", action="store_true", help="also show where the time of a step goes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
