"""Measures headrace and every installed peer side by side, in one run.

    python bench/run.py [--quick] [--only streams,router] [--name NAME]

All systems are started first and stay warm. Each round gives the same job to one
after the other, so that what the machine does to one it does to all of them
within seconds. The result is bench/results/NAME.json and NAME.md; a run with
`--only` renews those parts of a result that is there already.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from harness import machine
from harness.headrace_server import HeadraceServer
from harness.pace import PaceLog
from harness.processes import LoadWatch
from harness.report import page
from harness.router_only import measure_router
from harness.start_time import measure_start
from harness.step_floor import measure_steps
from harness.systems import System, known_keys, started_systems
from harness.workloads import GROUPS, Workload

from headrace.client.bench_profile import step_profile
from headrace.client.operations import StepProfile

RESULTS = machine.ROOT / "bench" / "results"
MODEL = "smollm2-135m-instruct"
PARTS = (*GROUPS, "steps", "start", "router")


async def measure(arguments: argparse.Namespace) -> None:
    """Runs the parts that were asked for; each is written as soon as it is there."""
    path = RESULTS / f"{arguments.name}.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    result |= {
        "name": arguments.name,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": machine.revision(),
        "machine": machine.describe(),
    }
    result.setdefault("systems", {})

    def write() -> None:
        RESULTS.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
        path.with_suffix(".md").write_text(page(result))

    if "steps" in arguments.only:
        result["steps"] = await measure_steps(MODEL)
        write()
    if "start" in arguments.only:
        result["start"] = await measure_start(MODEL, round_count=arguments.rounds)
        write()
    if "router" in arguments.only:
        result["router"] = await measure_router(MODEL, round_count=arguments.rounds)
        write()
    workloads = [workload for group, members in GROUPS.items() if group in arguments.only for workload in members]
    if workloads:
        weights = {workload.weights for workload in workloads}
        async with started_systems(MODEL, weights) as systems:
            result["systems"] |= {key: {"version": ""} for key in known_keys(weights)}
            result["systems"] |= {system.key: {"version": system.version} for system in systems}
            for workload in workloads:
                await compare(workload, [one for one in systems if one.fits(workload)], result, arguments.rounds)
                write()
    print(path.with_suffix(".md"))


async def compare(workload: Workload, systems: list[System], result: dict[str, Any], round_count: int) -> None:
    """Runs a workload on each system in turn, round by round, after a round that is not counted."""
    figures = workload.figures
    measured: dict[str, dict[str, list[float]]] = {
        system.name: {figure.name: [] for figure in figures} for system in systems
    }
    shares: list[tuple[float, float]] = []
    paces = PaceLog()
    for round_index in range(round_count + 1):
        requests = workload.requests(round_index)
        for system in systems:
            watch = LoadWatch(
                measured=system.engine.process_id,
                idle=[other.engine.process_id for other in systems if other is not system],
            )
            before = await system.engine.load() if isinstance(system.engine, HeadraceServer) else None
            traces = await system.engine.run(requests)
            share = watch.shares()
            paces.add(system.name, counts=round_index > 0)
            if round_index == 0:
                continue
            shares.append(share)
            for figure in figures:
                measured[system.name][figure.name].append(figure.read(traces))
            if before is not None and isinstance(system.engine, HeadraceServer):
                _keep_profile(result, workload.name, step_profile(before, await system.engine.load()))
            print(
                f"{workload.name} {round_index}: {system.name} {_shown(measured[system.name])}; "
                f"others on the machine took {shares[-1][1]:.0%} of a core",
                flush=True,
            )
    result.setdefault("workloads", {})[workload.name] = {
        "title": workload.title,
        "figures": [{"name": figure.name, "unit": figure.unit, "is_rate": figure.is_rate} for figure in figures],
        "systems": measured,
        "idle_share": max(idle for idle, _ in shares),
        "foreign_share": max(foreign for _, foreign in shares),
        "pace": paces.as_dict(),
    }


def _keep_profile(result: dict[str, Any], name: str, profile: StepProfile | None) -> None:
    if profile is not None:
        result.setdefault("profiles", {})[name] = asdict(profile) | {"waiting_s": profile.waiting_s}


def _shown(values: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {rounds[-1]:.1f}" for name, rounds in values.items())


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    if unknown := set(parts) - set(PARTS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: the parts are {', '.join(PARTS)}")
    return parts


def main() -> int:
    today = datetime.now(UTC).date().isoformat()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=_parts, default=PARTS, help=f"parts, with commas: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, help="rounds that count (default: 5, or 2 with --quick)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a result")
    parser.add_argument("--name", default=f"{today}-{_host()}", help="of the result (default: %(default)s)")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (2 if arguments.quick else 5)
    # Whoever is told to end has frozen children to let go first.
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(measure(arguments))
        return 0
    return 130


def _host() -> str:
    description = machine.describe()
    return f"{description['cpu_count']}-cores"


if __name__ == "__main__":
    sys.exit(main())
