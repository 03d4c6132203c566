"""The pure parts of the benchmark: what is read off token times, spreads, the drivers' protocol and the page."""

import json
import os
import random
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness.pace import Pace, PaceLog, measure_pace
from harness.peer_process import PeerFailed, PeerProcess, job_line, read_ready, read_traces
from harness.processes import LoadWatch, cpu_s, tree
from harness.report import page, ratio_cell
from harness.spread import Spread, paired_ratios
from harness.traces import Trace, decode_rate, first_token_percentile_s, gap_percentile_s, overall_rate, prompt_rate
from harness.workloads import GROUPS, Request, open_loop, shared_prefix, streams

ROOT = Path(__file__).resolve().parents[3]


def trace(*times_s: float, due_s: float = 0.0, prompt: int = 10) -> Trace:
    return Trace(prompt_token_count=prompt, due_s=due_s, token_times_s=times_s)


def test_decoding_counts_while_every_request_decodes() -> None:
    early, late = trace(1.0, 2.0, 3.0, 4.0), trace(2.0, 3.0, 4.0, 5.0)
    assert decode_rate([early, late]) == 4 / 2.0
    assert decode_rate([early]) == 3 / 3.0
    with pytest.raises(ValueError, match="ended before"):
        decode_rate([trace(1.0, 2.0), trace(2.0, 3.0)])


def test_rates_and_percentiles_worked_out_by_hand() -> None:
    traces = [trace(1.0, 2.0), trace(2.0, 5.0, due_s=1.5)]
    assert overall_rate(traces) == 4 / 5.0
    assert prompt_rate(traces) == 20 / 2.0
    assert first_token_percentile_s(traces, 50) == 0.5
    assert first_token_percentile_s(traces, 99) == 1.0
    assert gap_percentile_s(traces, 50) == 1.0
    assert gap_percentile_s(traces, 100) == 3.0


def test_ratios_pair_the_rounds() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(median=2.0, least=1.0, most=3.0)
    # The machine halves its speed between the rounds: the ratio does not notice.
    assert paired_ratios([100.0, 50.0], [50.0, 25.0]) == Spread(median=2.0, least=2.0, most=2.0)
    assert ratio_cell([10.0], [20.0], is_rate=True) == "0.50 (0.50..0.50)"
    assert ratio_cell([10.0], [20.0], is_rate=False) == "2.00 (2.00..2.00)"


def test_a_round_is_the_same_for_every_system_and_no_other_round() -> None:
    workload = streams(3)
    assert workload.requests(1) == workload.requests(1)
    assert workload.requests(1) != workload.requests(2)
    assert [len(request.prompt) for request in workload.requests(1)] == [128] * 3
    first, second, *_ = shared_prefix(3).make(random.Random(1))
    assert first.prompt[:512] == second.prompt[:512]
    assert first.prompt[512:] != second.prompt[512:]
    arrivals_s = [request.due_s for request in open_loop(200, 4.0).requests(0)]
    assert arrivals_s == sorted(arrivals_s)
    assert 35 < arrivals_s[-1] < 70
    names = [workload.name for members in GROUPS.values() for workload in members]
    assert len(names) == len(set(names))


def test_a_driver_is_understood_or_named() -> None:
    requests = [Request(prompt=(1, 2), new_token_count=2, due_s=0.5)]
    assert json.loads(job_line(requests)) == {"requests": [{"prompt": [1, 2], "new_token_count": 2, "due_s": 0.5}]}
    assert read_ready(b'{"ready": {"version": "1.2"}}') == "1.2"
    with pytest.raises(PeerFailed, match="began with"):
        read_ready(b'{"version": "1.2"}')
    assert read_traces(b'{"token_times_s": [[1.0, 2.0]]}', requests) == [trace(1.0, 2.0, due_s=0.5, prompt=2)]
    with pytest.raises(PeerFailed, match=r"asked for \[2\] tokens and got \[1\]"):
        read_traces(b'{"token_times_s": [[1.0]]}', requests)


def test_the_drivers_loop_adds_requests_when_they_are_due() -> None:
    driver = runpy.run_path(str(ROOT / "bench" / "peers" / "driver.py"))

    class Engine:
        missing: dict[int, int]

        def prepare(self, requests: list[dict[str, int]]) -> None:
            self.missing = {}

        def add(self, index: int, request: dict[str, int]) -> None:
            self.missing[index] = request["new_token_count"]

        @property
        def has_work(self) -> bool:
            return bool(self.missing)

        def step(self) -> list[tuple[int, int]]:
            came = [(index, 1) for index in self.missing]
            self.missing = {index: count - 1 for index, count in self.missing.items() if count > 1}
            return came

    jobs = [{"prompt": [1], "new_token_count": 3, "due_s": 0.02}, {"prompt": [1], "new_token_count": 2, "due_s": 0.0}]
    late, early = driver["run"](Engine(), jobs)
    assert (len(late), len(early)) == (3, 2)
    assert late == sorted(late)
    assert early[-1] < 0.02 <= late[0]


def test_a_process_has_its_descendants_and_its_time() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sum(range(3_000_000)); print(flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        assert tree(child.pid) == [child.pid]
        assert cpu_s(child.pid) > 0
        assert child.stdin is not None
        child.stdin.close()
    assert cpu_s(child.pid) == 0.0


def test_work_of_others_is_seen() -> None:
    watch = LoadWatch(measured=os.getpid(), idle=[])
    loop = "import time\nwhile time.process_time() < 0.4: pass"
    # Not a descendant of the measured process once its parent is gone, as a stranger's would be.
    subprocess.run(["sh", "-c", f"setsid {sys.executable} -c '{loop}' & sleep 0.6"], check=True)
    idle_share, foreign_share = watch.shares()
    assert idle_share == 0.0
    assert foreign_share > 0.1


def test_the_pace_of_a_run_is_that_before_and_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    paces = iter([Pace(products=float(value), reads=1.0, loops=1.0) for value in (1, 2, 4, 8)])
    monkeypatch.setattr("harness.pace.measure_pace", lambda: next(paces))
    log = PaceLog()
    log.add("ours", counts=False)
    log.add("ours", counts=True)
    log.add("theirs", counts=True)
    assert {system: values["products"] for system, values in log.as_dict().items()} == {"ours": [3.0], "theirs": [6.0]}


def test_the_pace_is_that_of_this_machine() -> None:
    pace = measure_pace()
    assert 0.001 < pace.products < 100.0
    assert 0.1 < pace.reads < 10_000.0
    assert 0.5 < pace.loops < 1000.0


def test_the_page_shows_medians_ratios_and_who_is_missing() -> None:
    text = page(
        {
            "name": "n",
            "revision": "abc",
            "machine": {"processor": "P", "cpu_count": 2, "memory_gib": 4, "system": "S", "torch": "T"},
            "systems": {"headrace (bf16)": {"version": "abc"}, "vllm (bf16)": {"version": ""}},
            "workloads": {
                "w": {
                    "title": "title",
                    "figures": [{"name": "decode", "unit": "tok/s", "is_rate": True}],
                    "systems": {
                        "headrace": {"decode": [200.0, 220.0, 210.0]},
                        "peer": {"decode": [100.0, 110.0, 70.0]},
                    },
                    "idle_share": 0.005,
                    "foreign_share": 0.75,
                    "pace": {"peer": {"products": [1.5, 0.5, 1.0], "reads": [20.0], "loops": [60.0]}},
                }
            },
            "steps": [{"weights": "plain", "rows": 8, "step_s": 0.012, "library_s": 0.01}],
            "profiles": {
                "w": {"step_count": 2, "prepare_s": 0.002, "forward_s": 0.02, "sample_s": 0.0, "waiting_s": 0.1}
            },
            "start": [3.0, 5.0, 4.0],
            "router": {
                "cpu": {"headrace": [25.0]},
                "latency": {"p50": [0.5]},
                "idle_share": 0.0,
                "foreign_share": 0.01,
            },
        }
    )
    assert "| decode, tok/s | peer | 100 (70.0..110) | 2.00 (2.00..3.00) |" in text
    assert "| decode, tok/s | headrace | 210 (200..220) |  |" in text
    assert "at most 0.5% of a core, and the rest of the machine 75.0%." in text
    assert "| beside | products, TFLOP/s | reads, GB/s | Python, M loops/s |" in text
    assert "| peer | 1.00 (0.50..1.50) | 20.0 (20.0..20.0) | 60.0 (60.0..60.0) |" in text
    assert "Not installed: vllm (bf16)." in text
    assert "| plain | 8 | 12.0 | 10.0 | 1.20 |" in text
    assert "| w | 1.00 | 10.0 | 0.00 | 50.0 |" in text
    assert "4.00 (3.00..5.00) seconds" in text
    assert "| p50 | ms added per token, 32 streams | 0.50 (0.50..0.50) |" in text


async def test_a_peer_is_frozen_between_its_jobs_and_ends(tmp_path: Path) -> None:
    script = (
        "import sys, json; print(json.dumps({'ready': {'version': '7'}}), flush=True)\n"
        "for line in sys.stdin: print(json.dumps({'token_times_s': [[0.5]]}), flush=True)"
    )
    peer = await PeerProcess.start([sys.executable, "-c", script], environment={}, log=tmp_path / "log")
    try:
        assert peer.version == "7"
        assert state_of(peer.process_id) == "T"
        assert await peer.run([Request(prompt=(1,), new_token_count=1)]) == [trace(0.5, prompt=1)]
        assert state_of(peer.process_id) == "T"
    finally:
        await peer.stop()
    with pytest.raises(PeerFailed, match="its log is"):
        await PeerProcess.start([sys.executable, "-c", ""], environment={}, log=tmp_path / "log")


def state_of(process_id: int) -> str:
    """Returns the state of a process once a signal has had its effect: T when it is stopped."""
    ends_s = time.monotonic() + 5
    while (state := Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]) != "T":
        assert time.monotonic() < ends_s
    return state
