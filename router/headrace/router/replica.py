"""One replica through its life: connecting, serving, lost and connected again, draining, gone."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from headrace.contract.clock import Clock
from headrace.contract.engine import EngineConnector, EngineDescription, StepEngine
from headrace.contract.errors import NotReady, ShardLost, StartupError
from headrace.router.adapter_table import AdapterRecord, AdapterTable
from headrace.router.engine_adapters import EngineAdapters
from headrace.router.reporting import Report
from headrace.router.running_request import RunningRequest
from headrace.router.scheduler import Scheduler, SchedulerLimits
from headrace.router.stats import SchedulerStats
from headrace.router.step_loop import StepLoop
from headrace.router.step_profile import StepProfile, StepProfiler

RETRY_AFTER_START_FAILURE_S = 5.0
"""A shard that says it cannot start is asked again after this: an operator may have replaced it."""

RETRY_AFTER_RESTORE_FAILURE_S = 0.5
"""A shard that was lost while it loaded its adapters is connected again after this."""


class ReplicaState(StrEnum):
    """Whether a replica takes requests."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulingOptions:
    """What an operator sets about batches; the engine's own limits may be lower."""

    step_token_limit: int
    """Most tokens computed in one step."""
    step_row_limit: int
    """Most sequences in one step."""
    prefill_chunk_token_limit: int
    """Most tokens of one prompt computed in one step."""
    priority_head_start_s: float
    """How long a request of one higher priority may overtake an older one."""
    step_timeout_s: float
    """A shard that answers no step for so long counts as lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """What a replica is doing, at one moment."""

    id: str
    addresses: tuple[str, ...]
    state: ReplicaState
    detail: str
    """Why it is in this state, for a person."""
    is_known: bool
    """Whether its engine has been reached, now or before."""
    is_connected: bool
    """Whether its engine can take steps, draining or not."""
    restart_count: int
    """How often it was lost and came back."""
    stats: SchedulerStats
    """Counters go on over restarts; the blocks are those of the engine at hand."""
    profile: StepProfile
    """Goes on over restarts."""


class Replica:
    """Keeps one engine connected and its requests running.

    Owned by a `ReplicaSet`, which decides where requests go.
    """

    def __init__(
        self,
        *,
        replica_id: str,
        addresses: tuple[str, ...],
        connector: EngineConnector,
        accept: Callable[[EngineDescription], None],
        options: SchedulingOptions,
        adapters: AdapterTable,
        clock: Clock,
        report: Report,
    ) -> None:
        self.id = replica_id
        self.addresses = addresses
        self.description: EngineDescription | None = None
        """What the engine is; None until it was reached once."""
        self.restart_count = 0
        self.profiler = StepProfiler()
        """For reading. Goes on over restarts."""
        self._connector = connector
        self._accept = accept
        self._options = options
        self._clock = clock
        self._report = report
        self._is_draining = False
        self._detail = "connecting"
        self._loop: StepLoop | None = None
        self._past_stats = SchedulerStats()
        self._left_behind: list[RunningRequest] = []
        self._adapters = adapters
        self._engine_adapters: EngineAdapters | None = None

    @property
    def state(self) -> ReplicaState:
        """Whether it takes requests."""
        if self._is_draining:
            return ReplicaState.DRAINING
        if self._loop is not None:
            return ReplicaState.SERVING
        return ReplicaState.STARTING if self.description is None else ReplicaState.LOST

    @property
    def scheduler(self) -> Scheduler | None:
        """The scheduler at hand, for reading; None while it is not connected."""
        return None if self._loop is None else self._loop.scheduler

    @property
    def request_count(self) -> int:
        """Requests that have not ended."""
        return 0 if self._loop is None else self._loop.request_count

    def drain(self) -> None:
        """Takes no new requests from now on. Safe to repeat."""
        self._is_draining = True
        self._detail = "drained by an operator"

    def status(self) -> ReplicaStatus:
        """Returns a snapshot."""
        stats = self._past_stats
        if self._loop is not None:
            stats = self._loop.scheduler.stats().after(stats)
        return ReplicaStatus(
            id=self.id,
            addresses=self.addresses,
            state=self.state,
            detail=self._detail,
            is_known=self.description is not None,
            is_connected=self._loop is not None,
            restart_count=self.restart_count,
            stats=stats,
            profile=self.profiler.snapshot(),
        )

    def submit(self, active: RunningRequest) -> None:
        """Runs a request.

        Raises:
            NotReady: the engine is not connected.
        """
        self._connected().submit(active)

    def cancel(self, active: RunningRequest) -> None:
        """Drops a request. Safe for one that is not here."""
        if self._loop is not None:
            self._loop.cancel(active)

    def cost_of(self, active: RunningRequest) -> int:
        """Returns how many tokens stand between a request and its first own one, counting what is ahead of it.

        Raises:
            NotReady: the engine is not connected.
        """
        loop = self._connected()
        stats = loop.scheduler.stats()
        missing_count = active.request.prompt_token_count - loop.scheduler.match_prefix(active.request)
        return missing_count + stats.waiting_token_count + loop.arriving_token_count + stats.running_count

    def has_adapter(self, digest: str) -> bool:
        """Returns whether sequences may ask the engine at hand for an adapter."""
        return self._engine_adapters is not None and digest in self._engine_adapters.digests

    async def load_adapter(self, record: AdapterRecord) -> None:
        """Loads an adapter and notes it in the table; see StepEngine.load_adapter.

        Raises:
            NotReady: the engine is not connected.
        """
        if self._engine_adapters is None:
            raise NotReady(f"replica {self.id} is not connected: {self._detail}")
        await self._engine_adapters.load(record)

    async def drop_unwanted_adapters(self) -> None:
        """Has the engine drop what nobody wants any more."""
        if self._engine_adapters is not None:
            await self._engine_adapters.drop_unwanted()

    def flush_prefix_cache(self) -> int:
        """Forgets cached prefixes that nothing uses and returns how many blocks became free."""
        return 0 if self._loop is None else self._loop.scheduler.flush_prefix_cache()

    async def run(
        self, adopt: Callable[["Replica"], None], orphan: Callable[[list[RunningRequest], str], None]
    ) -> None:
        """Connects, serves and reconnects until cancelled.

        `adopt` is called each time requests can be submitted, when the engine has
        every adapter that they may ask for; `orphan` gets the requests that a
        lost engine left behind, and why it was lost.

        Raises:
            StartupError: an adapter that the settings name cannot be loaded.
        """
        while True:
            engine = await self._connect()
            adapters = EngineAdapters(engine, self._adapters, self._report)
            try:
                await adapters.restore()
            except ShardLost as error:
                self._note_progress(error.message)
                await engine.aclose()
                await asyncio.sleep(RETRY_AFTER_RESTORE_FAILURE_S)
                continue
            except BaseException:
                await engine.aclose()
                raise
            self._engine_adapters = adapters
            loop = StepLoop(
                scheduler=Scheduler(self._limits(engine.description)),
                engine=engine,
                clock=self._clock,
                step_timeout_s=self._options.step_timeout_s,
                report=self._report,
                profiler=self.profiler,
            )
            self._loop = loop
            self._detail = "serving"
            self._report("replica_serving", replica_id=self.id, addresses=self.addresses)
            adopt(self)
            try:
                lost = await loop.run()
            finally:
                self._loop = None
                self._engine_adapters = None
                self._past_stats = loop.scheduler.stats().after(self._past_stats).without_gauges()
                self._left_behind = loop.abandon()
                await engine.aclose()
            self.restart_count += 1
            self._detail = lost.message
            requests = self.take_left_behind()
            self._report("replica_lost", replica_id=self.id, detail=lost.message, request_count=len(requests))
            orphan(requests, lost.message)

    def take_left_behind(self) -> list[RunningRequest]:
        """Hands over the requests that were running when `run` was cancelled."""
        requests, self._left_behind = self._left_behind, []
        return requests

    async def _connect(self) -> StepEngine:
        while True:
            try:
                engine = await self._connector.connect(self.addresses, self._note_progress)
            except StartupError as error:
                self._note_progress(error.message)
                self._report("replica_start_failed", replica_id=self.id, detail=error.message)
                await asyncio.sleep(RETRY_AFTER_START_FAILURE_S)
                continue
            try:
                self._accept(engine.description)
            except StartupError as error:
                await engine.aclose()
                self._note_progress(error.message)
                self._report("replica_refused", replica_id=self.id, detail=error.message)
                await asyncio.sleep(RETRY_AFTER_START_FAILURE_S)
                continue
            self.description = engine.description
            return engine

    def _note_progress(self, detail: str) -> None:
        self._detail = detail

    def _limits(self, description: EngineDescription) -> SchedulerLimits:
        options = self._options
        return SchedulerLimits(
            block_size=description.block_size,
            block_count=description.block_count,
            step_token_limit=_lower(options.step_token_limit, description.token_limit),
            step_row_limit=_lower(options.step_row_limit, description.row_limit),
            steps_in_flight=description.steps_in_flight,
            prefill_chunk_token_limit=options.prefill_chunk_token_limit,
            draft_token_limit=description.draft_token_limit,
            priority_head_start_s=options.priority_head_start_s,
        )

    def _connected(self) -> StepLoop:
        if self._loop is None:
            raise NotReady(f"replica {self.id} is not connected: {self._detail}")
        return self._loop


def _lower(limit: int, engine_limit: int) -> int:
    """Returns the lower limit, where 0 is none of the engine's."""
    return min(limit, engine_limit) if engine_limit else limit
