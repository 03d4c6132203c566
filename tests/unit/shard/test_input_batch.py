"""Whatever a router asks for, in whatever order, the resident batch keeps rows, tables and tokens straight."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_driver import GREEDY, PlanDriver

from headrace.contract.sampling import RowStopRules
from headrace.contract.step import AdmittedSequence, StepPlan
from headrace.shard.engines.fake import FakeEngine, FakeOptions
from headrace.shard.engines.fake_oracle import expected_tokens
from headrace.shard.input_batch import InputBatch

OPTIONS = FakeOptions(block_size=3, block_count=1601, context_token_count=600)

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
