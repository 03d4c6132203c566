"""What routing alone costs: processor time per token, and the time that the way to the client adds.

The engine is the fake one at a fixed step time, so that nothing but the router
can be slow. SMG gets a worker that paces its streams the same way. The sidecar's cost for HTTP comes on top of the
router's.
"""

import json
import os
import random
from typing import Any

from harness.headrace_server import HeadraceServer
from harness.pace import PaceLog
from harness.peer_process import clean_environment, python_of
from harness.processes import LoadWatch, cpu_s, tree_cpu_s
from harness.sidecar import measure_sidecar
from harness.started_process import ProcessEnded, StartedProcess
from harness.systems import DRIVERS, LOGS, PEERS
from harness.workloads import VOCABULARY_SIZE, Request
from headrace.client import AsyncClient
from headrace.client.bench_profile import step_profile
from headrace.client.bench_summary import nearest_rank

CPU_STREAM_COUNT = 64
LATENCY_STREAM_COUNT = 32
TOKEN_COUNT = 400
SHARED = "headrace, streams share a call"
SEPARATE = "headrace, a call for each stream"
CPU_STEP_S = 0.01
LATENCY_STEP_S = 0.02
"""About what a step of 32 rows takes on two cores."""
_SMG_TIMEOUT_S = 300.0
_SMG_STOP_TIMEOUT_S = 60.0


async def measure_router(model: str, *, round_count: int) -> dict[str, Any]:
    """Returns microseconds of processor time per token, and milliseconds added per token, round by round."""
    LOGS.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "cpu": {SHARED: [], SEPARATE: []},
        "sidecar_cpu": {"headrace rest": []},
        "sidecar_first_token": {"headrace rest": []},
        "latency": {"p50": [], "p99": []},
    }
    shares: list[tuple[float, float]] = []
    smg = await _start_smg()
    server = await _start_paced(model, CPU_STEP_S)
    paces = PaceLog()
    try:
        for round_index in range(round_count + 1):
            watch = LoadWatch(measured=server.process_id, idle=[] if smg is None else [smg[0].process_id])
            ours = await _cpu_per_token(server, server.client, round_index)
            separate = await _cpu_per_token(server, server.client_of_calls, round_index)
            shares.append(watch.shares())
            paces.add("headrace", counts=round_index > 0)
            theirs = None
            if smg is not None:
                watch = LoadWatch(measured=smg[0].process_id, idle=[server.process_id])
                theirs = await _smg_cpu_per_token(smg)
                shares.append(watch.shares())
                paces.add("SMG", counts=round_index > 0)
            http_us, http_ms = await measure_sidecar(server, round_index=round_index)
            paces.add("headrace rest", counts=round_index > 0)
            if round_index:
                result["sidecar_cpu"]["headrace rest"].append(http_us)
                result["sidecar_first_token"]["headrace rest"].append(http_ms)
                print(
                    f"router {round_index}: over HTTP {http_us:.1f} us more, first token {http_ms:.2f} ms later",
                    flush=True,
                )
                result["cpu"][SHARED].append(ours)
                result["cpu"][SEPARATE].append(separate)
                if smg is not None:
                    result["cpu"].setdefault(f"SMG {smg[1]['version']}", []).append(theirs)
                print(
                    f"router {round_index}: {ours:.1f} us per token, {separate:.1f} with a call for each stream, "
                    f"SMG {theirs or 0:.1f}; "
                    f"others on the machine took {max(foreign for _, foreign in shares[-2:]):.0%} of a core",
                    flush=True,
                )
    finally:
        await server.stop()
        if smg is not None:
            await smg[0].wait(_SMG_STOP_TIMEOUT_S)
    shares += await _measure_latency(model, result["latency"], round_count)
    result["pace"] = paces.as_dict()
    result["idle_share"] = max(idle for idle, _ in shares)
    result["foreign_share"] = max(foreign for _, foreign in shares)
    return result


async def _measure_latency(model: str, latency: dict[str, list[float]], round_count: int) -> list[tuple[float, float]]:
    """Fills in milliseconds added per token; returns what the rest of the machine took meanwhile."""
    shares: list[tuple[float, float]] = []
    server = await _start_paced(model, LATENCY_STEP_S)
    try:
        for round_index in range(round_count + 1):
            watch = LoadWatch(measured=server.process_id, idle=[])
            added_s = await _added_s(server, round_index)
            shares.append(watch.shares())
            if round_index:
                for percent in (50, 99):
                    latency[f"p{percent}"].append(1e3 * nearest_rank(added_s, percent))
                print(f"router {round_index}: {latency['p50'][-1]:.2f} ms added", flush=True)
    finally:
        await server.stop()
    return shares


async def _start_paced(model: str, step_s: float) -> HeadraceServer:
    return await HeadraceServer.start(
        model, "--engine=fake", f"--engine-option=step_time_s={step_s}", log=LOGS / "headrace-paced.log"
    )


def _requests(count: int, round_index: int) -> list[Request]:
    source = random.Random(f"router {round_index}")
    return [
        Request(prompt=tuple(source.choices(range(VOCABULARY_SIZE), k=16)), new_token_count=TOKEN_COUNT)
        for _ in range(count)
    ]


async def _cpu_per_token(server: HeadraceServer, client: AsyncClient, round_index: int) -> float:
    requests = _requests(CPU_STREAM_COUNT, round_index)
    before_s = cpu_s(server.process_id)
    await server.run(requests, client)
    return 1e6 * (cpu_s(server.process_id) - before_s) / (CPU_STREAM_COUNT * TOKEN_COUNT)


async def _added_s(server: HeadraceServer, round_index: int) -> list[float]:
    """Returns, ascending, how much longer each time between two tokens was than the engine's mean step."""
    requests = _requests(LATENCY_STREAM_COUNT, round_index)
    before = await server.load()
    traces = await server.run(requests)
    profile = step_profile(before, await server.load())
    assert profile is not None, "a router tells of its steps"
    step_s = (profile.prepare_s + profile.forward_s + profile.sample_s) / profile.step_count
    return sorted(gap_s - step_s for trace in traces for gap_s in trace.gaps_s)


Smg = tuple[StartedProcess, dict[str, Any]]
"""The driver, and what it said when it was ready."""


async def _start_smg() -> Smg | None:
    python = python_of(PEERS / "vllm")
    if not python.with_name("smg").exists():
        print("SMG is not installed: make bench-peers", flush=True)
        return None
    process = await StartedProcess.start(
        [str(python), str(DRIVERS / "smg_driver.py"), str(PEERS / "model")],
        log=LOGS / "smg.log",
        environment=clean_environment(dict(os.environ), python.parent),
    )
    try:
        return process, json.loads(await process.read_line(_SMG_TIMEOUT_S))["ready"]
    except ProcessEnded as error:
        print(f"SMG did not start: {error}", flush=True)
        return None


async def _smg_cpu_per_token(smg: Smg) -> float:
    process, ready = smg
    job = {"stream_count": CPU_STREAM_COUNT, "token_count": TOKEN_COUNT, "step_time_s": CPU_STEP_S}
    before_s = tree_cpu_s(ready["process_id"])
    await process.write(json.dumps(job).encode() + b"\n")
    answer = json.loads(await process.read_line(_SMG_TIMEOUT_S))
    return 1e6 * (tree_cpu_s(ready["process_id"]) - before_s) / float(answer["token_count"])
