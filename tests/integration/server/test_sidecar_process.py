"""The sidecar beside a router: started when the router is ready, restarted when it dies, drained with the router."""

import asyncio
import sys
from pathlib import Path

import pytest
import structlog

from headrace.contract.clock import MonotonicClock
from headrace.contract.errors import StartupError
from headrace.services import sidecar_process
from headrace.services.sidecar_process import SidecarProcess

POLITE = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""
STUBBORN = POLITE.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN")


def sidecar(script: str, *arguments: object) -> SidecarProcess:
    return SidecarProcess([sys.executable, "-S", "-c", script, *map(str, arguments)], clock=MonotonicClock())


async def is_there(path: Path) -> None:
    while not path.exists():  # noqa: ASYNC110, ASYNC240  # another process makes it
        await asyncio.sleep(0.005)


async def ready_future(*, is_ready: bool) -> "asyncio.Future[None]":
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    if is_ready:
        future.set_result(None)
    return future


async def test_it_starts_with_the_router_and_drains(tmp_path: Path) -> None:
    process = sidecar(POLITE, tmp_path / "started")
    ready = await ready_future(is_ready=False)
    running = asyncio.ensure_future(process.run(ready))
    await asyncio.sleep(0.05)
    assert not (tmp_path / "started").exists()
    ready.set_result(None)
    await is_there(tmp_path / "started")
    await asyncio.wait_for(process.drain(asyncio.Event()), 10)
    await running


async def test_a_drain_before_the_start_ends_at_once(tmp_path: Path) -> None:
    process = sidecar(POLITE, tmp_path / "started")
    running = asyncio.ensure_future(process.run(await ready_future(is_ready=False)))
    await asyncio.sleep(0)
    await asyncio.wait_for(process.drain(asyncio.Event()), 10)
    await running
    assert not (tmp_path / "started").exists()


async def test_it_is_started_again(tmp_path: Path) -> None:
    script = "import pathlib, sys; path = pathlib.Path(sys.argv[1]); path.open('a').write('x'); raise SystemExit(1)"
    process = sidecar(script, tmp_path / "starts")
    with structlog.testing.capture_logs() as log:
        running = asyncio.ensure_future(process.run(await ready_future(is_ready=True)))
        while sum(line["event"] == "sidecar_exited" for line in log) < 2:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.01)
        await asyncio.wait_for(process.drain(asyncio.Event()), 10)
        await running
    waits = [line["restart_in_s"] for line in log if line["event"] == "sidecar_exited"]
    assert waits[:2] == [0.1, 0.2]
    assert len((tmp_path / "starts").read_text()) >= 2


async def test_one_that_cannot_start_is_an_error() -> None:
    process = sidecar("raise SystemExit(2)")
    with pytest.raises(StartupError, match="sidecar cannot start"):
        await process.run(await ready_future(is_ready=True))
    await asyncio.wait_for(process.drain(asyncio.Event()), 10)


async def test_one_that_does_not_end_is_killed_when_in_a_hurry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecar_process, "STOP_GRACE_S", 0.05)
    process = sidecar(STUBBORN, tmp_path / "started")
    running = asyncio.ensure_future(process.run(await ready_future(is_ready=True)))
    await is_there(tmp_path / "started")
    hurry = asyncio.Event()
    hurry.set()
    await asyncio.wait_for(process.drain(hurry), 10)
    await running
