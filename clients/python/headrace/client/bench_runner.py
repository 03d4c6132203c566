"""Puts load on a server over gRPC and records how each request fared."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from itertools import takewhile

from headrace.client.aio import AsyncClient
from headrace.client.bench_load import Pace, Workload
from headrace.client.bench_profile import step_profile
from headrace.client.bench_summary import RequestRecord, Summary, mean_batch, summarize
from headrace.client.operations import StepProfile
from headrace.client.options import GenerateOptions
from headrace.contract.errors import HeadraceError

NO_RETRIES = ("grpc.enable_retries", 0)
"""An option for the client's channel: a request that is refused is a result here, and not to be tried again."""

FAILURE_PAUSE_S = 0.1
"""How long a stream of a closed loop waits after a failure. Without it a server that is gone would be asked, and
would fail, thousands of times per second."""

_LOAD_DEADLINE_S = 10.0


class LoadRunner:
    """Runs loads against one model, one after the other."""

    def __init__(self, client: AsyncClient, workload: Workload, *, model: str = "", vocabulary_size: int) -> None:
        self._client = client
        self._workload = workload
        self._model = model
        self._prompts = workload.prompts(vocabulary_size)

    async def run(self, pace: Pace, on_end: Callable[[RequestRecord], None] = lambda _: None) -> Summary:
        """Puts one load on the server and returns what it found. `on_end` is told of each request that ended.

        Raises:
            HeadraceError: the server cannot tell its load before. Failures of requests are counted, not raised.
        """
        before = await self._client.get_load(deadline_s=_LOAD_DEADLINE_S)
        records = await self._send(pace, on_end)
        batch: float | None = None
        profile: StepProfile | None = None
        # What was measured is worth showing even when the server did not survive it.
        with contextlib.suppress(HeadraceError):
            after = await self._client.get_load(deadline_s=_LOAD_DEADLINE_S)
            batch, profile = mean_batch(before, after), step_profile(before, after)
        return summarize(records, duration_s=pace.duration_s, mean_batch=batch, profile=profile)

    async def _send(self, pace: Pace, on_end: Callable[[RequestRecord], None]) -> list[RequestRecord]:
        # Prompts that an earlier load has left in the prefix cache must not help this one.
        options: GenerateOptions = {
            "model": self._model,
            "temperature": 0.0,
            "max_new_token_count": self._workload.new_token_count,
            "ignore_end_of_sequence": True,
            "cache_salt": secrets.token_hex(8),
            "deadline_s": None,
        }
        load = _Load(self._client, self._prompts, options, on_end)
        due_times_s = pace.due_times_s(self._workload.seed)
        if pace.stream_count is None:
            await load.open_loop(due_times_s)
        else:
            await load.closed_loop(due_times_s, pace.stream_count, pace.duration_s)
        return load.records


class _Load:
    """One load while it runs."""

    def __init__(
        self,
        client: AsyncClient,
        prompts: Iterator[tuple[int, ...]],
        options: GenerateOptions,
        on_end: Callable[[RequestRecord], None],
    ) -> None:
        self.records: list[RequestRecord] = []
        self._client = client
        self._prompts = prompts
        self._options = options
        self._on_end = on_end
        self._began_s = time.perf_counter()

    def _now_s(self) -> float:
        return time.perf_counter() - self._began_s

    async def open_loop(self, due_times_s: Iterator[float]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for due_s in due_times_s:
                await asyncio.sleep(due_s - self._now_s())
                tasks.create_task(self._request(due_s))

    async def closed_loop(self, due_times_s: Iterator[float], stream_count: int, duration_s: float | None) -> None:
        # All streams take from one iterator, so that together they send as many requests as it has.
        while_time = takewhile(lambda _: duration_s is None or self._now_s() < duration_s, due_times_s)

        async def stream() -> None:
            for _ in while_time:
                record = await self._request(self._now_s())
                if record.ended_s is None:
                    await asyncio.sleep(FAILURE_PAUSE_S)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(stream_count):
                tasks.create_task(stream())

    async def _request(self, due_s: float) -> RequestRecord:
        record = RequestRecord(due_s=due_s)
        self.records.append(record)
        stream = self._client.stream(next(self._prompts), **self._options)
        try:
            async with stream:
                async for delta in stream:
                    if delta.token_ids:
                        record.add(self._now_s(), len(delta.token_ids))
        except HeadraceError as error:
            record.outcome = error.reason
        else:
            record.ended_s = self._now_s()
            record.outcome = stream.finished.reason.value
        if stream.has_started:
            record.prompt_token_count = stream.started.prompt_token_count
            record.cached_token_count = stream.started.cached_token_count
        self._on_end(record)
        return record
