"""The worker runs plans in order on its own thread, and gives them up when it is told to."""

import threading
from concurrent.futures import Future

import pytest

from headrace.contract.errors import PlanRejected, ShardLost
from headrace.contract.step import StepPlan, StepResult
from headrace.shard.engines.fake import FakeEngine, FakeOptions
from headrace.shard.worker import Worker

OPTIONS = FakeOptions(block_count=8)


class ManualClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time_s = 100.0

    def now(self) -> float:
        return self.time_s


class Gate:
    """Stops the engine at a step until the test lets it go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()
        self.threads: list[str] = []

    def __call__(self, plan: StepPlan) -> None:
        self.threads.append(threading.current_thread().name)
        self.reached.set()
        assert self.open.wait(30)


def steps(worker: Worker, *step_ids: int) -> list[Future[StepResult]]:
    return [worker.submit(StepPlan(step_id=step_id)) for step_id in step_ids]


def test_plans_run_in_order_on_another_thread() -> None:
    gate = Gate()
    worker = Worker(FakeEngine(OPTIONS, on_step=gate))
    futures = steps(worker, 1, 2, 5)
    assert gate.reached.wait(30)
    assert not futures[0].done()
    gate.open.set()
    assert [future.result(30).step_id for future in futures] == [1, 2, 5]
    worker.close()
    assert set(gate.threads) != {threading.current_thread().name}
    assert len(set(gate.threads)) == 1


def test_time_in_the_queue_is_reported() -> None:
    gate, clock = Gate(), ManualClock()
    worker = Worker(FakeEngine(OPTIONS, on_step=gate), clock=clock)
    first, second = steps(worker, 1, 2)
    assert gate.reached.wait(30)
    clock.time_s += 7.0
    gate.open.set()
    assert first.result(30).timings.queued_s == 0.0
    assert second.result(30).timings.queued_s == 7.0
    worker.close()


def test_a_failed_step_fails_all_that_follow_until_a_reset() -> None:
    worker = Worker(FakeEngine(OPTIONS))
    good, bad, following = steps(worker, 4, 3, 5)
    assert good.result(30).step_id == 4
    with pytest.raises(PlanRejected, match="step_id 3"):
        bad.result(30)
    with pytest.raises(PlanRejected, match="has to be reset"):
        following.result(30)
    worker.reset().result(30)
    assert steps(worker, 1)[0].result(30).step_id == 1
    worker.close()


def test_a_failure_of_the_engine_itself_counts_as_well() -> None:
    def fail_first(plan: StepPlan) -> None:
        if plan.step_id == 1:
            raise MemoryError

    worker = Worker(FakeEngine(OPTIONS, on_step=fail_first))
    first, second = steps(worker, 1, 2)
    with pytest.raises(MemoryError):
        first.result(30)
    with pytest.raises(PlanRejected):
        second.result(30)
    worker.close()


def test_a_reset_gives_up_the_plans_that_wait() -> None:
    gate = Gate()
    worker = Worker(FakeEngine(OPTIONS, on_step=gate))
    running, waiting = steps(worker, 1, 2)
    assert gate.reached.wait(30)
    done = worker.reset()
    first_of_new_batch = worker.submit(StepPlan(step_id=1))
    gate.open.set()
    done.result(30)
    assert running.result(30).step_id == 1
    with pytest.raises(ShardLost):
        waiting.result(30)
    assert first_of_new_batch.result(30).step_id == 1
    worker.close()


def test_closing_waits_for_the_running_step_alone() -> None:
    gate = Gate()
    worker = Worker(FakeEngine(OPTIONS, on_step=gate))
    running, waiting = steps(worker, 1, 2)
    assert gate.reached.wait(30)
    closer = threading.Thread(target=worker.close)
    closer.start()
    # Only a closed worker refuses; from then on the plan in the queue is lost.
    while True:
        try:
            worker.submit(StepPlan(step_id=9))
        except RuntimeError:
            break
    assert closer.is_alive()
    gate.open.set()
    closer.join(30)
    assert running.result(0).step_id == 1
    with pytest.raises(ShardLost):
        waiting.result(0)


def test_a_closed_worker_takes_nothing() -> None:
    worker = Worker(FakeEngine(OPTIONS))
    worker.close()
    worker.close()
    with pytest.raises(RuntimeError):
        worker.submit(StepPlan(step_id=1))
