"""Whatever a router asks for, in whatever order, the resident batch keeps rows, tables and tokens straight."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_driver import GREEDY, PlanDriver

from headrace.contract.errors import PlanRejected
from headrace.contract.sampling import RowStopRules
from headrace.contract.step import AdmittedSequence, RowError, StepPlan, StepResult
from headrace.shard.engines.fake import FakeEngine, FakeOptions
from headrace.shard.engines.fake_oracle import expected_tokens
from headrace.shard.input_batch import InputBatch
from headrace.shard.step_rows import StepRows

OPTIONS = FakeOptions(block_size=3, block_count=1601, context_token_count=600)

FAILING_TOKEN = 11

ACTIONS = st.one_of(
    st.tuples(st.just("submit"), st.integers(1, 40), st.integers(1, 12)),
    st.tuples(st.just("step"), st.integers(1, 9), st.sets(st.integers(0, 12))),
    st.tuples(st.just("release"), st.integers(0, 12), st.just(0)),
    st.tuples(st.just("preempt"), st.integers(0, 12), st.just(0)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(actions=st.lists(ACTIONS, min_size=5, max_size=60))
def test_any_order_of_changes_gives_the_oracles_tokens(actions: list[tuple[str, int, object]]) -> None:
    driver = PlanDriver(FakeEngine(OPTIONS))
    jobs = []
    for number, (action, first, second) in enumerate(actions):
        job = driver.rows[first % len(driver.rows)] if driver.rows else None
        if action == "submit":
            jobs.append(driver.submit([number * 50 + i for i in range(first)], second))
        elif action == "step":
            driver.chunk_token_count = first
            held = {row for row in second if row < len(driver.rows) and not driver.rows[row].is_over}
            driver.take(driver.engine.execute(driver.plan(held)))
        elif job is not None:
            if action == "preempt" or not job.is_over:
                driver.preempt(job)
            else:
                driver.release(job)
    driver.chunk_token_count = 1000
    driver.run()
    for job in jobs:
        count = job.stopping.token_limit - len(job.prompt)
        assert tuple(job.generated) == expected_tokens(job.prompt, count)


class Twins:
    """Two batches with the same plans, of which one is never told that a step is like the one before."""

    description = FakeEngine(OPTIONS).description

    def __init__(self) -> None:
        self.batch, self.other = InputBatch(self.description), InputBatch(self.description)
        self.repeated_count = 0
        self._last: StepRows | None = None

    def execute(self, plan: StepPlan) -> StepResult:
        step, other = self.batch.apply(plan), self.other.apply(spelled_out(plan, self.batch.row_count))
        self.repeated_count += self._last is not None and step.places is self._last.places
        self._last = step
        flat, width = self.batch.flatten(step), -(-step.longest // OPTIONS.block_size)
        # Rows that ended are not counted on by either, but the columns of both tell the same.
        for found, expected in ((step, other), (flat, self.other.flatten(other))):
            for field in fields(found):
                assert np.array_equal(getattr(found, field.name), getattr(expected, field.name)), field.name
        assert np.array_equal(self.batch.block_tables(step)[:, :width], self.other.block_tables(other)[:, :width])
        indices = step.output_indices()
        token_ids = (flat.token_ids[indices] * 31 + flat.positions[indices]) % 41
        failed = np.zeros(len(step.rows), dtype=np.bool_)
        failed[step.samples] = token_ids == FAILING_TOKEN
        outcomes = self.batch.record(step, token_ids, failed if failed.any() else None)
        assert outcomes == self.other.record(other, token_ids, failed)
        return StepResult(
            step_id=plan.step_id,
            token_counts=outcomes.token_counts,
            token_ids=outcomes.token_ids,
            ended_rows=outcomes.ended_rows,
            row_ends=outcomes.row_ends,
            errors=tuple(RowError(row, "FAILED", "") for row in step.rows[failed].tolist()),
        )


def spelled_out(plan: StepPlan, row_count: int) -> StepPlan:
    """Returns the same plan with a chunk of one token, which goes without saying, for a row."""
    if plan.chunk_rows:
        return plan
    row = next((row for row in range(row_count) if row not in plan.held_rows), None)
    return plan if row is None else replace(plan, chunk_rows=(row,), chunk_token_counts=(1,))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(actions=st.lists(ACTIONS, min_size=5, max_size=60))
def test_a_step_like_the_last_one_is_what_it_would_be_anew(actions: list[tuple[str, int, object]]) -> None:
    driver = PlanDriver(Twins())  # type: ignore[arg-type] # All that the driver needs of an engine.
    for number, (action, first, second) in enumerate(actions):
        job = driver.rows[first % len(driver.rows)] if driver.rows else None
        if action == "submit":
            driver.submit([number * 50 + i for i in range(first)], 4 * second, stop_token_ids=(3,))
        elif action == "step":
            for held, chunk_token_count in (
                (set(), first),
                (set(), 1000),
                (set(), 1000),
                (second, 1000),
                (set(), 1000),
            ):
                driver.chunk_token_count = chunk_token_count
                running = {row for row, job in enumerate(driver.rows) if not job.is_over}
                driver.take(driver.engine.execute(driver.plan(running & held)))
        elif job is not None:
            driver.preempt(job)


def test_rows_that_go_on_are_not_looked_up_again() -> None:
    twins = Twins()
    driver = PlanDriver(twins)  # type: ignore[arg-type] # All that the driver needs of an engine.
    for number in range(3):
        driver.submit([number + 5, 6, 7], 12)
    for _ in range(8):
        driver.step()
    # Blocks that are added change no row; the first step computes prompts, and the second is the first that decodes.
    assert twins.repeated_count == 6


def test_rows_that_go_on_need_blocks_as_any_others() -> None:
    batch = InputBatch(FakeEngine(OPTIONS).description)
    batch.apply(StepPlan(step_id=1, admitted=(admitted(10),)))
    for step_id in (2, 3, 4):
        step = batch.apply(StepPlan(step_id=step_id))
        batch.record(step, np.array([5]))
    with pytest.raises(PlanRejected, match="cannot hold"):
        batch.apply(StepPlan(step_id=5))


def test_columns_grow_with_rows_and_lengths() -> None:
    """More rows, tokens, blocks and ending tokens than the columns begin with."""
    driver = PlanDriver(FakeEngine(replace(OPTIONS, context_token_count=2000)))
    endings = tuple(range(10, 31))
    jobs = [driver.submit([row + 40, *range(100, 100 + 7 * row)], 60, stop_token_ids=endings) for row in range(20)]
    long = driver.submit(range(100, 130), 700, stop_token_ids=endings)
    driver.run()
    for job in [*jobs, long]:
        assert tuple(job.generated) == expected_tokens(job.prompt, job.stopping.token_limit - len(job.prompt))


def admitted(sequence_id: int, **changes: object) -> AdmittedSequence:
    sequence = AdmittedSequence(
        sequence_id=sequence_id,
        token_ids=(sequence_id, 5, 6, 7),
        prompt_token_count=4,
        computed_token_count=3,
        block_ids=(sequence_id, sequence_id + 100),
        sampling=GREEDY,
        stopping=RowStopRules(token_limit=20),
    )
    return replace(sequence, **changes)


@pytest.fixture
def batch() -> InputBatch:
    batch = InputBatch(FakeEngine(OPTIONS).description)
    batch.apply(StepPlan(step_id=1, admitted=tuple(admitted(number) for number in (10, 11, 12, 13))))
    return batch


def test_rows_keep_their_order(batch: InputBatch) -> None:
    plan = StepPlan(step_id=2, released_sequence_ids=(13, 11), admitted=(admitted(14), admitted(11)))
    step = batch.apply(plan)
    assert batch.row_count == step.row_count == 4
    assert batch.columns.token_ids[step.places, 0].tolist() == [10, 12, 14, 11]


def test_tokens_are_flat_and_know_their_places(batch: InputBatch) -> None:
    sequence = admitted(14, token_ids=(1, 2, 3, 4, 5), prompt_token_count=5, computed_token_count=1, block_ids=(40, 50))
    plan = StepPlan(step_id=2, admitted=(sequence,), chunk_rows=(4,), chunk_token_counts=(3,), held_rows=(1, 2))
    step = batch.apply(plan)
    flat = batch.flatten(step)
    assert step.rows.tolist() == [0, 3, 4]
    assert step.samples.tolist() == [True, True, False]
    assert flat.token_ids.tolist() == [7, 7, 2, 3, 4]
    assert flat.positions.tolist() == [3, 3, 1, 2, 3]
    assert flat.slot_ids.tolist() == [330, 339, 121, 122, 150]
    assert flat.query_starts.tolist() == [0, 1, 2, 5]
    assert flat.context_lengths.tolist() == [4, 4, 4]
    assert batch.block_tables(step).tolist() == [[10, 110], [13, 113], [40, 50]]


def test_blocks_of_several_rows_are_told_apart(batch: InputBatch) -> None:
    plan = StepPlan(step_id=2, block_rows=(0, 2), block_counts=(2, 1), block_ids=(70, 71, 72))
    step = batch.apply(plan)
    tables = [batch.columns.block_tables[place, : batch.columns.block_counts[place]].tolist() for place in step.places]
    assert tables == [[10, 110, 70, 71], [11, 111], [12, 112, 72], [13, 113]]


def test_clearing_forgets_everything(batch: InputBatch) -> None:
    batch.clear()
    assert batch.row_count == 0
    step = batch.apply(StepPlan(step_id=1, admitted=(admitted(10),)))
    assert step.row_count == 1
