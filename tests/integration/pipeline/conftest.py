"""A pipeline over fake engines in this process: everything but gRPC."""

import asyncio
import concurrent.futures
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headrace.contract.adapter import AdapterOrder, LoadedAdapter
from headrace.contract.clock import MonotonicClock
from headrace.contract.engine import EngineDescription, StepEngine
from headrace.contract.errors import ShardLost
from headrace.contract.generation import (
    GenerationDelta,
    GenerationEvent,
    GenerationFinished,
    GenerationRequest,
    GenerationStarted,
    TokenPrompt,
)
from headrace.contract.sampling import SamplingOptions, StoppingOptions
from headrace.contract.step import StepPlan, StepResult
from headrace.router.adapter_table import AdapterTable
from headrace.router.admission import Admission, AdmissionLimits
from headrace.router.model_card import load_model_card, load_tokenizer
from headrace.router.pipeline import Pipeline, ServedModel
from headrace.router.replica import SchedulingOptions
from headrace.router.replicas import ReplicaSet
from headrace.router.reporting import report_nothing
from headrace.router.validation import RequestLimits
from headrace.shard.engines.fake import FakeEngine, FakeOptions
from headrace.shard.worker import Worker


class LocalEngine:
    """A StepEngine over a worker in this process, which can be made to die."""

    def __init__(self, engine: FakeEngine) -> None:
        self._worker = Worker(engine)
        self._pending: set[asyncio.Future[StepResult]] = set()
        self._lost: asyncio.Future[ShardLost] = asyncio.get_running_loop().create_future()
        self.plans: list[StepPlan] = []
        self.orders: list[AdapterOrder | str] = []
        """What was loaded, and the digests of what was unloaded."""
        self.may_load = asyncio.Event()
        self.may_load.set()

    @property
    def description(self) -> EngineDescription:
        return self._worker.description

    async def load_adapter(self, order: AdapterOrder) -> LoadedAdapter:
        await self.may_load.wait()
        if self._lost.done():
            raise self._lost.result()
        self.orders.append(order)
        return await asyncio.wrap_future(self._worker.load_adapter(order))

    async def unload_adapter(self, digest: str) -> None:
        self.orders.append(digest)
        await asyncio.wrap_future(self._worker.drop_adapter(digest))

    def step(self, plan: StepPlan) -> Awaitable[StepResult]:
        self.plans.append(plan)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[StepResult] = loop.create_future()
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        self._worker.submit(plan).add_done_callback(
            lambda answered: loop.call_soon_threadsafe(self._answer, future, answered)
        )
        return future

    @staticmethod
    def _answer(future: asyncio.Future[StepResult], answered: concurrent.futures.Future[StepResult]) -> None:
        if future.done():
            return
        if error := answered.exception():
            future.set_exception(error)
        else:
            future.set_result(answered.result())

    async def wait_lost(self) -> ShardLost:
        return await asyncio.shield(self._lost)

    def die(self) -> None:
        """Loses the engine as a killed process does: unanswered steps fail."""
        error = ShardLost("killed by the test")
        for future in list(self._pending):
            if not future.done():
                future.set_exception(error)
                future.exception()  # nobody may be waiting
        if not self._lost.done():
            self._lost.set_result(error)

    async def aclose(self) -> None:
        self.die()
        await asyncio.to_thread(self._worker.close)


@dataclass
class LocalConnector:
    """Hands out fake engines: a new one for each connection."""

    make: Callable[[], FakeEngine]
    engines: list[LocalEngine] = field(default_factory=list)
    may_connect: asyncio.Event = field(default_factory=asyncio.Event)

    async def connect(self, addresses: tuple[str, ...], on_progress: Callable[[str], None]) -> StepEngine:
        on_progress(f"connecting {addresses}")
        await self.may_connect.wait()
        engine = LocalEngine(self.make())
        self.engines.append(engine)
        return engine


@dataclass
class Answer:
    """All events of one request, taken apart."""

    events: list[GenerationEvent]

    @property
    def started(self) -> GenerationStarted:
        assert isinstance(self.events[0], GenerationStarted)
        return self.events[0]

    @property
    def finished(self) -> GenerationFinished:
        assert isinstance(self.events[-1], GenerationFinished)
        return self.events[-1]

    @property
    def deltas(self) -> list[GenerationDelta]:
        return [event for event in self.events if isinstance(event, GenerationDelta)]

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(itertools.chain.from_iterable(delta.token_ids for delta in self.deltas))

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)


@dataclass
class Bench:
    """A running pipeline and its engines."""

    pipeline: Pipeline
    replicas: ReplicaSet
    connector: LocalConnector
    runner: "asyncio.Future[None]"
    """Ends only when the test does, or with an error that ends the router."""

    async def ask(self, request: GenerationRequest) -> Answer:
        return Answer([event async for event in self.pipeline.generate(request)])

    async def serving(self) -> None:
        """Waits until a replica takes requests."""
        while not self.replicas.is_serving:
            await self.replicas.wait_changed(self.replicas.version)

    def check_integrity(self) -> None:
        for replica in self.replicas.replicas():
            assert replica.scheduler is not None
            replica.scheduler.check_integrity()


def request_of(token_ids: tuple[int, ...], count: int = 8, **fields: object) -> GenerationRequest:
    """A greedy request for `count` tokens after token ids."""
    defaults: dict[str, object] = {
        "prompt": TokenPrompt(token_ids),
        "sampling": SamplingOptions(temperature=0.0),
        "stopping": StoppingOptions(max_new_token_count=count),
    }
    return GenerationRequest(**{**defaults, **fields})  # type: ignore[arg-type]


@pytest.fixture(name="request_of")
def request_factory() -> Callable[..., GenerationRequest]:
    """Returns `request_of`, since test modules cannot import each other."""
    return request_of


@pytest.fixture(scope="session")
def served_model(example_model: Path) -> ServedModel:
    card = load_model_card(example_model, "test-model")
    limits = RequestLimits(context_token_count=4096, prompt_token_count=4000)
    return ServedModel(card=card, tokenizer=load_tokenizer(example_model), template=None, limits=limits)


@pytest.fixture
def start(served_model: ServedModel) -> Callable[..., object]:
    """Returns a context manager that runs a pipeline."""

    @asynccontextmanager
    async def run(
        *,
        engine: FakeOptions | None = None,
        make: Callable[[], FakeEngine] | None = None,
        replica_count: int = 1,
        step_token_limit: int = 256,
        step_row_limit: int = 128,
        prefill_chunk_token_limit: int = 256,
        waiting_request_limit: int = 1000,
        waiting_token_limit: int = 1_000_000,
        replay_timeout_s: float = 30.0,
        is_connected: bool = True,
        adapters: dict[str, str] | None = None,
    ) -> AsyncIterator[Bench]:
        clock = MonotonicClock()
        connector = LocalConnector(make or (lambda: FakeEngine(engine or FakeOptions())))
        if is_connected:
            connector.may_connect.set()
        replicas = ReplicaSet(
            connector=connector,
            options=SchedulingOptions(
                step_token_limit=step_token_limit,
                step_row_limit=step_row_limit,
                prefill_chunk_token_limit=prefill_chunk_token_limit,
                priority_head_start_s=5.0,
                step_timeout_s=30.0,
            ),
            vocabulary_size=served_model.card.vocabulary_size,
            replay_timeout_s=replay_timeout_s,
            clock=clock,
            report=report_nothing,
            adapters=AdapterTable(adapters),
        )
        ids, seeds = itertools.count(), itertools.count(1)
        with ThreadPoolExecutor(2) as executor:
            pipeline = Pipeline(
                model=served_model,
                admission=Admission(
                    AdmissionLimits(
                        waiting_request_limit=waiting_request_limit, waiting_token_limit=waiting_token_limit
                    ),
                    clock,
                ),
                replicas=replicas,
                executor=executor,
                clock=clock,
                new_request_id=lambda: f"request-{next(ids)}",
                new_seed=lambda: next(seeds),
            )
            runner = asyncio.ensure_future(replicas.run([(f"local-{n}",) for n in range(replica_count)]))
            bench = Bench(pipeline, replicas, connector, runner)
            try:
                if is_connected:
                    await bench.serving()
                yield bench
            finally:
                runner.cancel()
                await asyncio.wait([runner])
                if not runner.cancelled() and (error := runner.exception()):
                    raise error

    return run
