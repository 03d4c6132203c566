"""Every engine produces the same tokens for a sequence, however the router schedules it."""

import random
from collections.abc import Callable

import pytest
from plan_driver import GREEDY, Job, PlanDriver

from headrace.contract.sampling import SamplingParams
from headrace.shard.engine import Engine
from headrace.shard.worker import Worker

TOKEN_COUNT = 12
LENGTHS = (1, 3, 4, 5, 8, 17, 31, 64, 2, 40)


def make_prompts(limit: int = 200) -> list[list[int]]:
    source = random.Random(5)
    return [[source.randrange(limit) for _ in range(length)] for length in LENGTHS]


PROMPTS = make_prompts()
SAMPLINGS = [
    GREEDY,
    SamplingParams(temperature=0.9, seed=2**64 - 3),
    SamplingParams(temperature=1.3, top_k=20, seed=5),
    SamplingParams(temperature=1.0, top_p=0.8, seed=1),
]


def sampling_of(index: int) -> SamplingParams:
    return SAMPLINGS[index % len(SAMPLINGS)]


def submit_all(driver: PlanDriver) -> list[Job]:
    return [driver.submit(prompt, TOKEN_COUNT, sampling=sampling_of(index)) for index, prompt in enumerate(PROMPTS)]


def outputs(jobs: list[Job]) -> list[list[int]]:
    return [job.generated for job in jobs]


@pytest.fixture
def alone(engine: Engine) -> list[list[int]]:
    """What each prompt gives when nothing else runs."""
    results = []
    for index, prompt in enumerate(PROMPTS):
        engine.reset()
        driver = PlanDriver(engine)
        job = driver.submit(prompt, TOKEN_COUNT, sampling=sampling_of(index))
        driver.run()
        results.append(job.generated)
    engine.reset()
    return results


def test_outputs_are_varied(alone: list[list[int]]) -> None:
    assert all(len(tokens) == TOKEN_COUNT for tokens in alone)
    assert len({tuple(tokens) for tokens in alone}) == len(alone)
    assert sum(len(set(tokens)) for tokens in alone) > 5 * len(alone)


def test_batched(engine: Engine, alone: list[list[int]]) -> None:
    driver = PlanDriver(engine)
    jobs = submit_all(driver)
    driver.run()
    assert outputs(jobs) == alone


@pytest.mark.parametrize("chunk", [1, 3, 4, 16])
def test_chunked_prefill(engine: Engine, alone: list[list[int]], chunk: int) -> None:
    driver = PlanDriver(engine, chunk_token_count=chunk)
    jobs = submit_all(driver)
    driver.run()
    assert outputs(jobs) == alone


def test_arriving_and_leaving(engine: Engine, alone: list[list[int]]) -> None:
    driver = PlanDriver(engine, chunk_token_count=5)
    jobs: list[Job] = []
    for index, prompt in enumerate(PROMPTS):
        jobs.append(driver.submit(prompt, TOKEN_COUNT, sampling=sampling_of(index)))
        for _ in range(3):
            driver.step()
            for job in [row for row in driver.rows if row.is_over]:
                driver.release(job)
    driver.run()
    assert outputs(jobs) == alone


def test_preempted_and_admitted_again(engine: Engine, alone: list[list[int]]) -> None:
    driver = PlanDriver(engine, chunk_token_count=7)
    jobs = submit_all(driver)
    source = random.Random(3)
    while not all(job.is_over for job in jobs):
        driver.step()
        running = [row for row in driver.rows if not row.is_over]
        if running and source.random() < 0.4:
            driver.preempt(source.choice(running))
    assert outputs(jobs) == alone


def test_prefix_taken_from_another_sequence(engine: Engine, alone: list[list[int]]) -> None:
    driver = PlanDriver(engine)
    long_prompt = PROMPTS[7]
    owner = driver.submit(long_prompt, TOKEN_COUNT, sampling=sampling_of(7))
    driver.run()
    again = driver.submit_with_prefix(long_prompt, TOKEN_COUNT, owner=owner)
    branch = driver.submit_with_prefix([*long_prompt[:30], 9, 9, 9], TOKEN_COUNT, owner=owner)
    assert (again.computed_count, branch.computed_count) == (60, 28)
    driver.run()
    engine.reset()
    fresh = PlanDriver(engine)
    expected = [fresh.submit(job.prompt, TOKEN_COUNT) for job in (again, branch)]
    fresh.run()
    assert outputs([again, branch]) == outputs(expected)
    assert owner.generated == alone[7]


def test_two_plans_in_flight(engine: Engine, alone: list[list[int]]) -> None:
    worker = Worker(engine)
    driver = PlanDriver(engine, chunk_token_count=9)
    jobs = submit_all(driver)
    driver.run_ahead(worker)
    worker.close()
    assert outputs(jobs) == alone


def test_held_rows_wait_and_go_on(engine: Engine, alone: list[list[int]]) -> None:
    driver = PlanDriver(engine)
    jobs = submit_all(driver)
    for step in range(6 * TOKEN_COUNT):
        held = {row for row, job in enumerate(jobs) if (row + step) % 3 == 0 and not job.is_over}
        result = engine.execute(driver.plan(held))
        driver.take(result)
        assert all(result.token_counts[row] == 0 for row in held)
    assert all(job.is_over for job in jobs)
    assert outputs(jobs) == alone


def test_randomness_goes_on_after_a_replay(engine: Engine, alone: list[list[int]]) -> None:
    """Prompt and tokens so far, given to another engine as one prompt, continue alike."""
    driver = PlanDriver(engine)
    jobs = [
        driver.submit([*prompt, *alone[index][:5]], TOKEN_COUNT - 5, sampling=sampling_of(index))
        for index, prompt in enumerate(PROMPTS)
    ]
    driver.run()
    assert [[*alone[index][:5], *job.generated] for index, job in enumerate(jobs)] == alone


def test_the_seed_decides(engine: Engine) -> None:
    driver = PlanDriver(engine)
    samplings = [SamplingParams(temperature=1.0, seed=seed) for seed in (1, 2, 1, 1 << 63)]
    jobs = [driver.submit(PROMPTS[4], TOKEN_COUNT, sampling=sampling) for sampling in samplings]
    driver.run()
    assert jobs[0].generated == jobs[2].generated
    assert len({tuple(job.generated) for job in jobs}) == 3


@pytest.mark.parametrize("block_size", [1, 5, 16])
def test_any_block_size(create: Callable[..., Engine], alone: list[list[int]], block_size: int) -> None:
    driver = PlanDriver(create(block_size=block_size, block_count=997))
    jobs = submit_all(driver)
    driver.run()
    assert outputs(jobs) == alone
