"""Runs an engine on a thread of its own, so that whoever feeds it never waits for a forward pass."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from headrace.contract.adapter import AdapterOrder, LoadedAdapter
from headrace.contract.clock import Clock, MonotonicClock
from headrace.contract.engine import EngineDescription
from headrace.contract.errors import PlanRejected, ShardLost
from headrace.contract.step import StepPlan, StepResult
from headrace.contract.vocabulary import Vocabulary
from headrace.shard.engine import Engine


class Worker:
    """Owns an engine and its thread. Plans run in the order of the calls.

    The methods return at once and are meant for one caller, such as an event
    loop; the futures complete on the worker's thread.
    """

    def __init__(self, engine: Engine, *, clock: Clock | None = None) -> None:
        self._engine = engine
        self._clock = clock or MonotonicClock()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="engine", initializer=engine.enter_thread)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="adapters")
        self._generation = 0
        self._is_usable = True

    @property
    def description(self) -> EngineDescription:
        """What the engine is."""
        return self._engine.description

    def submit(self, plan: StepPlan) -> Future[StepResult]:
        """Queues a plan behind the others.

        Raises (from the future):
            PlanRejected: the plan broke the contract, or an earlier one failed and no reset came since.
            ShardLost: a reset or a close came before the plan's turn.
            RuntimeError: at once, if the worker is closed.
        """
        return self._executor.submit(self._execute, plan, self._generation, self._clock.now())

    def load_vocabulary(self, vocabulary: Vocabulary) -> Future[None]:
        """Tells the engine the model's tokens once the running step is done; see Engine.load_vocabulary."""
        return self._executor.submit(self._engine.load_vocabulary, vocabulary)

    def load_adapter(self, order: AdapterOrder) -> Future[LoadedAdapter]:
        """Reads an adapter while steps go on, and adds it between two of them.

        Raises (from the future):
            ShardLost: a reset or a close came before it was there.
            FeatureUnsupported, InvalidRequest, AdaptersFull: see Engine.prepare_adapter.
        """
        return self._reader.submit(self._load_adapter, order, self._generation)

    def drop_adapter(self, digest: str) -> Future[None]:
        """Takes an adapter from the sequences of later plans; see Engine.drop_adapter."""
        return self._executor.submit(self._engine.drop_adapter, digest)

    def reset(self) -> Future[None]:
        """Empties the batch once the running step is done; plans that wait fail with ShardLost."""
        self._generation += 1
        return self._executor.submit(self._reset)

    def close(self) -> None:
        """Waits for the running step and ends the thread; plans that wait fail with ShardLost. Safe to repeat."""
        self._generation += 1
        # In this order: what is being read is handed to the engine's thread.
        self._reader.shutdown(wait=True)
        self._executor.shutdown(wait=True)

    def _execute(self, plan: StepPlan, generation: int, submitted_at_s: float) -> StepResult:
        if generation != self._generation:
            raise ShardLost("the batch was given up before this step ran")
        if not self._is_usable:
            raise PlanRejected("an earlier step failed; the batch has to be reset")
        queued_s = self._clock.now() - submitted_at_s
        self._is_usable = False
        result = self._engine.execute(plan)
        self._is_usable = True
        # In place: copies of the result would take as long as drawing its tokens.
        result.timings.queued_s = queued_s
        return result

    def _load_adapter(self, order: AdapterOrder, generation: int) -> LoadedAdapter:
        add = self._engine.prepare_adapter(order)
        return self._executor.submit(self._add_adapter, add, generation).result()

    def _add_adapter(self, add: Callable[[], LoadedAdapter], generation: int) -> LoadedAdapter:
        if generation != self._generation:
            raise ShardLost("the batch was given up before the adapter was read")
        return add()

    def _reset(self) -> None:
        self._engine.reset()
        self._is_usable = True
