"""A shard process loads, serves and ends, seen from within."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headrace.contract.errors import ShardLost, StartupError
from headrace.contract.step import StepPlan
from headrace.services import shard_process
from headrace.services.settings import ShardSettings
from headrace.services.shard_connector import ShardConnector
from headrace.services.shard_process import engine_options, run_shard
from headrace.services.thread_plan import ThreadPlan
from headrace.shard.engines.fake import FakeEngine

from .conftest import OPTIONS, admission


class Signals:
    """Stands in for the signals of a process."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.hurry = asyncio.Event()

    async def wait(self) -> None:
        await self.requested.wait()

    async def wait_hurry(self) -> None:
        await self.hurry.wait()


class Loading:
    """An engine whose start and whose steps wait for the test."""

    def __init__(self) -> None:
        self.has_begun = asyncio.Event()
        self.has_stepped = asyncio.Event()
        self.may_go_on = threading.Event()
        self.failure: StartupError | None = None
        self._loop = asyncio.get_running_loop()

    def create(self, _name: str, _options: object, progress: Callable[[str], None]) -> FakeEngine:
        progress("reads weights")
        self._loop.call_soon_threadsafe(self.has_begun.set)
        assert self.may_go_on.wait(30)
        self.may_go_on.clear()
        if self.failure is not None:
            raise self.failure
        return FakeEngine(OPTIONS, on_step=self._on_step)

    def _on_step(self, _plan: StepPlan) -> None:
        self._loop.call_soon_threadsafe(self.has_stepped.set)
        assert self.may_go_on.wait(30)


@pytest.fixture
async def loading(monkeypatch: pytest.MonkeyPatch) -> Loading:
    loading = Loading()
    monkeypatch.setattr(shard_process, "create_engine", loading.create)
    return loading


@pytest.fixture
async def signals(monkeypatch: pytest.MonkeyPatch) -> Signals:
    signals = Signals()
    monkeypatch.setattr(shard_process, "Shutdown", lambda: signals)
    return signals


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    monkeypatch.setattr(os, "_exit", found.append)
    return found


@asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[tuple[str, "asyncio.Task[int]"]]:
    settings = ShardSettings(engine="fake", listen=f"unix:{tmp_path}/shard.sock")
    yield settings.listen, asyncio.create_task(run_shard(settings))


async def test_a_second_signal_does_not_wait_for_a_step_that_hangs(
    loading: Loading, signals: Signals, exits: list[int], tmp_path: Path
) -> None:
    loading.may_go_on.set()
    async with running(tmp_path) as (address, process):
        engine = await ShardConnector(message_size_limit_bytes=2**20).connect((address,), lambda _detail: None)
        step = engine.step(admission(1))
        await loading.has_stepped.wait()
        signals.requested.set()
        with pytest.raises(ShardLost):
            await step
        await engine.aclose()
        assert not process.done()
        signals.hurry.set()
        assert await asyncio.wait_for(process, 5) == 0
        assert exits == [1]
        loading.may_go_on.set()


async def test_the_running_step_is_waited_for_after_one_signal(
    loading: Loading, signals: Signals, exits: list[int], tmp_path: Path
) -> None:
    loading.may_go_on.set()
    async with running(tmp_path) as (address, process):
        engine = await ShardConnector(message_size_limit_bytes=2**20).connect((address,), lambda _detail: None)
        engine.step(admission(1))
        await loading.has_stepped.wait()
        signals.requested.set()
        await engine.wait_lost()
        await engine.aclose()
        loading.may_go_on.set()
        assert await asyncio.wait_for(process, 5) == 0
        assert exits == []


async def test_it_tells_its_progress_before_it_serves(loading: Loading, signals: Signals, tmp_path: Path) -> None:
    async with running(tmp_path) as (address, process):
        await loading.has_begun.wait()
        details: list[str] = []
        told = asyncio.Event()

        def note(detail: str) -> None:
            details.append(detail)
            told.set()

        connecting = asyncio.create_task(ShardConnector(message_size_limit_bytes=2**20).connect((address,), note))
        await told.wait()
        assert details[0].endswith("reads weights")
        loading.may_go_on.set()
        await (await connecting).aclose()
        signals.requested.set()
        assert await asyncio.wait_for(process, 5) == 0


async def test_a_failed_start_is_the_result_of_the_process(loading: Loading, signals: Signals, tmp_path: Path) -> None:
    loading.failure = StartupError("no such file: model.gguf")
    loading.may_go_on.set()
    async with running(tmp_path) as (_, process):
        with pytest.raises(StartupError, match="no such file"):
            await asyncio.wait_for(process, 5)


def test_engine_options_are_typed_and_only_what_the_engine_knows() -> None:
    settings = ShardSettings(
        engine="fake", block_count=9, engine_option=("step_time_s=0.5", "poison_token_id=7", "name=x=y")
    )
    assert engine_options(settings, ThreadPlan(count=1)) == {
        "adapter_limit": 16,
        "block_size": 16,
        "block_count": 9,
        "row_limit": 256,
        "token_limit": 2048,
        "step_time_s": 0.5,
        "poison_token_id": 7,
        "name": "x=y",
    }


def test_the_native_engine_gets_the_files_of_the_model(example_model: Path) -> None:
    settings = ShardSettings(model="smollm2-135m-instruct", kv_memory="1GiB", context_token_limit=100)  # type: ignore[arg-type]
    options = engine_options(settings, ThreadPlan(count=2, processors=(1, 3)))
    assert (options["thread_count"], options["processors"]) == (2, "1,3")
    assert options["model"] == str(example_model)
    assert (options["kv_memory_bytes"], options["context_token_count"]) == (2**30, 100)
