"""`headrace bench` against a server of its own kind, and against a router over the fake engine."""

import asyncio
import json
import os
import pty
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from headrace.client import AsyncClient
from headrace.client.bench_cli import main
from headrace.client.bench_load import Pace, Workload
from headrace.client.bench_runner import NO_RETRIES, LoadRunner
from headrace.v1 import router_service_pb2

# The shapes of conftest's fixtures; test files cannot import from it.
Server = Any
Script = Any
Fail = Any


@pytest.fixture(autouse=True)
def one_model(script: Script) -> None:
    limits = router_service_pb2.ModelLimits(context_token_count=64, prompt_token_count=32, vocabulary_size=100)
    model = router_service_pb2.Model(name="tiny", engine="scripted", limits=limits)
    script.answers["GetModel"] = router_service_pb2.GetModelResponse(model=model)
    script.answers["GetLoad"] = router_service_pb2.GetLoadResponse()


def sent(script: Script) -> list[Any]:
    return [request for request in script.requests if hasattr(request, "token_ids")]


async def run(server: Server, *arguments: str) -> int:
    sizes = ("--prompt-token-count=8", "--new-token-count=4")
    return await asyncio.to_thread(main, [f"--target={server.target}", *sizes, *arguments])


async def test_loads_are_run_in_turn_and_everything_is_written(
    server: Server, script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "result.json"
    assert await run(server, "--streams=1,3", "--request-count=6", "--seed=5", f"--json={path}") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith(
        f"tiny at {server.target}: prompts of 8 tokens, answers of 4, seed 5\n\n1 stream: 6 of 6"
    )
    assert "\n3 streams: 6 of 6 requests completed" in captured.out
    requests = sent(script)
    assert len(requests) == 2 + 6 + 6
    for request in requests:
        assert len(request.token_ids.ids) == 8
        assert max(request.token_ids.ids) < 100
        assert (request.model, request.sampling.temperature, request.stopping.max_new_token_count) == ("tiny", 0.0, 4)
        assert request.sampling.HasField("temperature")
        assert request.stopping.ignore_end_of_sequence
    assert len({request.token_ids.SerializeToString() for request in requests}) == 14
    assert len({request.cache_salt for request in requests}) == 3
    result = json.loads(path.read_text())
    assert result["workload"] == {
        "prompt_token_count": 8, "new_token_count": 4, "shared_prefix_token_count": 0, "seed": 5,
    }  # fmt: skip
    assert result["model"]["engine"] == "scripted"
    assert [item["summary"]["outcomes"] for item in result["loads"]] == [{"length": 6}, {"length": 6}]


async def test_an_open_loop_does_not_wait_for_answers(server: Server, script: Script) -> None:
    script.gate = asyncio.Event()
    async with AsyncClient(server.target) as client:
        runner = LoadRunner(client, Workload(prompt_token_count=4), vocabulary_size=100)
        load = asyncio.ensure_future(runner.run(Pace(rate_per_s=1000.0, request_count=5)))
        async with asyncio.timeout(10):
            while len(sent(script)) < 5:  # noqa: ASYNC110  # the scripted server tells nobody
                await asyncio.sleep(0.005)
        script.gate.set()
        summary = await load
    assert (summary.completed_count, summary.outcomes) == (5, {"length": 5})


async def test_a_closed_loop_has_so_many_under_way_and_no_more(server: Server, script: Script) -> None:
    script.gate = asyncio.Event()
    async with AsyncClient(server.target) as client:
        runner = LoadRunner(client, Workload(prompt_token_count=4), vocabulary_size=100)
        ended: list[object] = []
        load = asyncio.ensure_future(runner.run(Pace(stream_count=2, request_count=5), ended.append))
        await script.at_gate.wait()
        await client.get_model()
        assert len(sent(script)) <= 2
        script.gate.set()
        summary = await load
    assert (summary.request_count, len(ended)) == (5, 5)


async def test_a_duration_ends_the_load(server: Server, script: Script) -> None:
    async with AsyncClient(server.target) as client:
        runner = LoadRunner(client, Workload(prompt_token_count=4), vocabulary_size=100)
        summary = await runner.run(Pace(stream_count=2, duration_s=0.1))
    assert summary.completed_count == summary.request_count > 2
    assert summary.window_s == 0.1


async def test_refusals_are_counted_by_reason_and_not_tried_again(
    server: Server, script: Script, fail: Fail, capsys: pytest.CaptureFixture[str]
) -> None:
    full = fail(code=grpc.StatusCode.RESOURCE_EXHAUSTED, reason="QUEUE_FULL", retry_after_s=0.01, pushback_ms=1)
    script.gate = asyncio.Event()
    async with AsyncClient(server.target, channel_options=(NO_RETRIES,)) as client:
        runner = LoadRunner(client, Workload(prompt_token_count=4), vocabulary_size=100)
        load = asyncio.ensure_future(runner.run(Pace(stream_count=1, request_count=3)))
        await script.at_gate.wait()
        script.failures.append(full)
        script.gate.set()
        summary = await load
    assert summary.outcomes == {"length": 2, "QUEUE_FULL": 1}
    script.failure_after_words = fail(code=grpc.StatusCode.ABORTED, reason="SHARD_LOST")
    assert await run(server, "--request-count=1", "--warmup-request-count=0") == 1
    assert "ended by: SHARD_LOST 1\n" in capsys.readouterr().out


async def test_mistakes_are_explained(server: Server, script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(server, "--prompt-token-count=33") == 2
    assert capsys.readouterr().err == "headrace bench: the model takes prompts of up to 32 tokens\n"
    assert await run(server, "--streams=0") == 2
    assert "must be positive" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        await run(server, "--streams=many")
    assert "'many' is not a number" in capsys.readouterr().err
    assert await run(server, "--request-count=1", "--json=/nowhere/result.json") == 1
    assert "cannot write the results" in capsys.readouterr().err
    assert not [request for request in sent(script) if len(request.token_ids.ids) == 33]


def test_a_server_that_is_not_there_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--target=127.0.0.1:1"]) == 1
    assert capsys.readouterr().err.startswith("headrace bench: cannot reach a server at 127.0.0.1:1: ")


async def test_progress_is_shown_on_a_terminal(server: Server) -> None:
    person, program = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "headrace.client.bench_cli", f"--target={server.target}", "--prompt-token-count=8",
        "--new-token-count=4", "--request-count=3", stdout=asyncio.subprocess.PIPE, stderr=program,
    )  # fmt: skip
    os.close(program)
    try:
        out, _ = await process.communicate()
        shown = os.read(person, 10_000).decode()
    finally:
        os.close(person)
    assert process.returncode == 0
    assert out.decode().count("3 of 3 requests") == 1
    assert "1 stream [##########....................] 1 request" in shown
    assert shown.endswith("\r\x1b[K")


@pytest.fixture
async def fake_router(tmp_path: Path) -> AsyncIterator[str]:
    """The address of a router with a fake engine whose blocks are few tokens long."""
    options = ("--listen=127.0.0.1:0", "--engine=fake", "--engine-option=step_time_s=0.002", "--propagation-s=0")
    with (tmp_path / "log").open("w") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "headrace.services", "serve", "smollm2-135m-instruct", *options,
            stdout=asyncio.subprocess.PIPE, stderr=log,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        assert line, (tmp_path / "log").read_text()
        yield line.split()[-1]
        process.terminate()
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_router_batches_the_streams_and_finds_the_shared_prefix(
    fake_router: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--streams=8", "--request-count=24", "--prompt-token-count=64", "--new-token-count=16"]
    shared = "--shared-prefix-token-count=48"
    assert await asyncio.to_thread(main, [f"--target={fake_router}", *arguments, shared]) == 0
    out = capsys.readouterr().out
    assert "24 of 24 requests completed" in out
    assert "ended by: length 24" in out
    found = re.search(r"(\d+) of 1536 prompt tokens cached, mean batch ([\d.]+)", out)
    assert found is not None
    # Only the first requests, which came together, can have missed the 48 shared tokens.
    assert 16 * 48 <= int(found[1]) <= 23 * 48
    assert float(found[2]) > 2
    assert await asyncio.to_thread(main, [f"--target={fake_router}", *arguments, "--profile"]) == 0
    out = capsys.readouterr().out
    forward = re.search(r"^  forward +([\d.]+)", out, re.MULTILINE)
    assert forward is not None
    assert float(forward[1]) >= 2.0  # what a step of this engine takes at least
    assert " 0 of 1536 prompt tokens cached" in out
