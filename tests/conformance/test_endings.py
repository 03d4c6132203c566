"""Every engine ends rows by itself where token ids are all it takes, and leaves ended rows alone."""

import pytest
from plan_driver import PlanDriver

from headrace.contract.sampling import SamplingParams
from headrace.contract.step import RowEnd, StepPlan
from headrace.shard.engine import Engine

PROMPT = tuple(range(20, 29))


@pytest.fixture
def free_run(engine: Engine) -> list[int]:
    """Twenty tokens that nothing stopped."""
    driver = PlanDriver(engine)
    job = driver.submit(PROMPT, 20)
    driver.run()
    engine.reset()
    return job.generated


def first_new(tokens: list[int], start: int) -> int:
    """The first index from `start` on whose token did not come before."""
    return next(index for index in range(start, len(tokens)) if tokens[index] not in tokens[:index])


def test_the_token_limit(engine: Engine, free_run: list[int]) -> None:
    driver = PlanDriver(engine)
    jobs = [driver.submit(PROMPT, token_count) for token_count in (1, 2, 7)]
    driver.run()
    assert [job.generated for job in jobs] == [free_run[:1], free_run[:2], free_run[:7]]
    assert [job.end for job in jobs] == [RowEnd.TOKEN_LIMIT] * 3


@pytest.mark.parametrize(
    ("field", "end"),
    [("end_of_sequence_token_ids", RowEnd.END_OF_SEQUENCE), ("stop_token_ids", RowEnd.STOP_TOKEN)],
)
def test_an_ending_token_is_the_last(engine: Engine, free_run: list[int], field: str, end: RowEnd) -> None:
    at = first_new(free_run, 4)
    driver = PlanDriver(engine)
    job = driver.submit(PROMPT, 20, **{field: (free_run[at], 199)})
    other = driver.submit(PROMPT, 20)
    driver.run()
    assert (job.generated, job.end) == (free_run[: at + 1], end)
    assert other.generated == free_run


def test_an_ending_token_at_the_limit_is_the_reason(engine: Engine, free_run: list[int]) -> None:
    at = first_new(free_run, 4)
    driver = PlanDriver(engine)
    stopped = driver.submit(PROMPT, at + 1, stop_token_ids=(free_run[at],))
    both = driver.submit(PROMPT, 20, stop_token_ids=(free_run[at],), end_of_sequence_token_ids=(free_run[at],))
    driver.run()
    assert (stopped.end, both.end) == (RowEnd.STOP_TOKEN, RowEnd.END_OF_SEQUENCE)


def test_many_ending_tokens(engine: Engine, free_run: list[int]) -> None:
    at = first_new(free_run, 4)
    others = [token_id for token_id in range(200) if token_id not in free_run][:60]
    driver = PlanDriver(engine)
    job = driver.submit(PROMPT, 20, stop_token_ids=(*others, free_run[at]))
    driver.run()
    assert (job.generated, job.end) == (free_run[: at + 1], RowEnd.STOP_TOKEN)


def test_no_ending_before_the_least_count(engine: Engine, free_run: list[int]) -> None:
    endings = (free_run[0], free_run[1])
    driver = PlanDriver(engine)
    rules = {"stop_token_ids": endings[:1], "end_of_sequence_token_ids": endings[1:], "min_new_token_count": 6}
    job = driver.submit(PROMPT, 20, **rules)
    drawn = driver.submit(PROMPT, 20, sampling=SamplingParams(temperature=2.0, seed=4), **rules)
    driver.run()
    for row in (job, drawn):
        assert not set(row.generated[:6]) & set(endings)
    assert job.generated[0] != free_run[0]


def test_the_least_count_spans_a_preemption(engine: Engine, free_run: list[int]) -> None:
    rules = {"stop_token_ids": tuple(free_run[:2]), "min_new_token_count": 6}
    driver = PlanDriver(engine)
    job = driver.submit(PROMPT, 20, **rules)
    for _ in range(4):
        driver.step()
    driver.preempt(job)
    driver.run()
    engine.reset()
    whole = PlanDriver(engine)
    expected = whole.submit(PROMPT, 20, **rules)
    whole.run()
    assert job.generated == expected.generated
    assert not set(job.generated[:6]) & set(free_run[:2])


def test_an_ended_row_computes_nothing_until_it_is_released(engine: Engine, free_run: list[int]) -> None:
    driver = PlanDriver(engine)
    short, long = driver.submit(PROMPT, 2), driver.submit(PROMPT, 12)
    driver.step()
    result = driver.step()
    assert (result.ended_rows, result.row_ends) == ((0,), (RowEnd.TOKEN_LIMIT,))
    # The router did not know of the end when it sent a block and a chunk for the row, or held it.
    grown = {"block_rows": (0, 1), "block_counts": (1, 1), "block_ids": tuple(driver.free_blocks)[-2:]}
    late = engine.execute(StepPlan(step_id=3, held_rows=(0,), **grown))
    later = engine.execute(StepPlan(step_id=4, chunk_rows=(0,), chunk_token_counts=(3,)))
    assert (late.token_counts, later.token_counts) == ((0, 1), (0, 1))
    assert [*long.generated, *late.token_ids, *later.token_ids] == free_run[:4]
    after = engine.execute(StepPlan(step_id=5, released_sequence_ids=(short.sequence_id,)))
    assert after.token_counts == (1,)
    assert after.token_ids == (free_run[4],)


def test_a_step_may_compute_nothing(engine: Engine) -> None:
    assert engine.execute(StepPlan(step_id=1)).token_counts == ()
    driver = PlanDriver(engine)
    driver.submit(PROMPT, 1)
    engine.reset()
    driver.step()
    result = engine.execute(StepPlan(step_id=2))
    assert (result.token_counts, result.token_ids, result.ended_rows) == ((0,), (), ())


def test_a_broken_row_leaves_the_others_alone(engine: Engine, broken_token_id: int, free_run: list[int]) -> None:
    driver = PlanDriver(engine)
    rows = [PROMPT, (*PROMPT[:5], broken_token_id, 7), PROMPT]
    jobs = [driver.submit(prompt, 20) for prompt in rows]
    result = driver.step()
    assert [error.row for error in result.errors] == [1]
    assert result.errors[0].reason.isupper()
    assert result.errors[0].detail
    assert result.token_counts == (1, 0, 1)
    driver.run()
    assert [job.generated for job in jobs] == [free_run, [], free_run]
    driver.release(jobs[1])
    # Its blocks may go to anyone.
    driver.free_blocks.rotate(len(driver.free_blocks) // 2)
    heirs = [driver.submit(PROMPT, 20) for _ in range(6)]
    driver.run()
    assert all(heir.generated == free_run for heir in heirs)
