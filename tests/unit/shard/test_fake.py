"""The fake engine: its oracle, its simulated time and its planned accidents."""

import subprocess
import sys
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from plan_driver import GREEDY, PlanDriver

from headrace.contract.errors import PlanRejected
from headrace.contract.sampling import RowStopRules, SamplingParams
from headrace.contract.step import AdmittedSequence, RowEnd, StepPlan
from headrace.shard.engines.fake import POISON_EXIT_STATUS, FakeEngine, FakeOptions
from headrace.shard.engines.fake_oracle import FakeModel, expected_completion, expected_tokens

PROMPT = (40, 41, 42, 43, 44, 45)
SMALL = FakeOptions(block_size=4, block_count=64, context_token_count=256)


def admitted(sequence_id: int, block_ids: tuple[int, ...], *, computed: int = 0) -> AdmittedSequence:
    return AdmittedSequence(
        sequence_id=sequence_id,
        token_ids=PROMPT,
        prompt_token_count=len(PROMPT),
        computed_token_count=computed,
        block_ids=block_ids,
        sampling=GREEDY,
        stopping=RowStopRules(token_limit=200),
    )


def first_token(engine: FakeEngine, sequence: AdmittedSequence) -> int:
    chunk = len(PROMPT) - sequence.computed_token_count
    return engine.execute(
        StepPlan(step_id=1, admitted=(sequence,), chunk_rows=(0,), chunk_token_counts=(chunk,))
    ).token_ids[0]


def test_tokens_are_the_oracles_for_random_requests() -> None:
    source = Random(1)
    driver = PlanDriver(FakeEngine(replace(SMALL, block_count=150, end_of_sequence_one_in=9)), chunk_token_count=5)
    model = FakeModel(end_of_sequence_one_in=9)
    jobs = []
    for seed in range(20):
        prompt = [source.randrange(49152) for _ in range(source.randrange(1, 30))]
        sampling = SamplingParams(temperature=float(seed % 2), seed=seed << 58)
        minimum = source.randrange(4)
        jobs.append(
            driver.submit(prompt, 15, sampling=sampling, end_of_sequence_token_ids=(2,), min_new_token_count=minimum)
        )
        driver.step()
        for ended in [row for row in driver.rows if row.is_over]:
            driver.release(ended)
    driver.run()
    for job in jobs:
        expected, end = expected_completion(job.prompt, 15, model=model, sampling=job.sampling, stopping=job.stopping)
        assert (tuple(job.generated), job.end) == (expected, end)
    assert {job.end for job in jobs} == {RowEnd.END_OF_SEQUENCE, RowEnd.TOKEN_LIMIT}


def test_the_end_of_sequence_does_not_come_up_by_default() -> None:
    tokens = expected_tokens(PROMPT, 5000)
    assert min(tokens) >= 32
    assert max(tokens) < 49152


def test_every_token_before_changes_the_next() -> None:
    whole = expected_tokens(PROMPT, 1)
    changed = [expected_tokens((*PROMPT[:i], 99, *PROMPT[i + 1 :]), 1) for i in range(len(PROMPT))]
    swapped = expected_tokens((PROMPT[1], PROMPT[0], *PROMPT[2:]), 1)
    assert len({whole, swapped, *changed}) == len(PROMPT) + 2


def test_a_wrong_block_table_changes_the_tokens() -> None:
    engine = FakeEngine(SMALL)
    assert first_token(engine, admitted(1, (7, 3))) == expected_tokens(PROMPT, 1)[0]
    engine.reset()
    # Block 7 holds the first four tokens; 9 was never computed.
    assert first_token(engine, admitted(1, (7, 30), computed=4)) == expected_tokens(PROMPT, 1)[0]
    engine.reset()
    assert first_token(engine, admitted(1, (9, 30), computed=4)) != expected_tokens(PROMPT, 1)[0]


def test_a_block_overwritten_by_another_row_changes_the_tokens() -> None:
    engine = FakeEngine(SMALL)
    first_token(engine, admitted(1, (7, 3)))
    thief = replace(admitted(2, (7, 8)), token_ids=(90, *PROMPT[1:]))
    result = engine.execute(StepPlan(step_id=2, admitted=(thief,), chunk_rows=(1,), chunk_token_counts=(6,)))
    assert result.token_ids[0] != expected_tokens(PROMPT, 2)[1]


def test_two_tokens_in_one_place_are_noticed() -> None:
    plan = StepPlan(
        step_id=1,
        admitted=(admitted(1, (7, 3)), admitted(2, (9, 3))),
        chunk_rows=(0, 1),
        chunk_token_counts=(6, 6),
    )
    with pytest.raises(PlanRejected, match="same place"):
        FakeEngine(SMALL).execute(plan)


def test_simulated_time_goes_through_the_given_sleep() -> None:
    slept: list[float] = []
    engine = FakeEngine(replace(SMALL, step_time_s=0.5, token_time_s=0.25), sleep=slept.append)
    driver = PlanDriver(engine)
    for _ in range(2):
        driver.submit(PROMPT, 2)
    driver.run()
    assert slept == [0.5 + 0.25 * 12, 0.5 + 0.25 * 2]


def test_what_the_hook_raises_the_step_raises() -> None:
    seen: list[int] = []

    def fail_second(plan: StepPlan) -> None:
        seen.append(plan.step_id)
        if plan.step_id == 2:
            raise RuntimeError("out of memory")

    driver = PlanDriver(FakeEngine(SMALL, on_step=fail_second))
    driver.submit(PROMPT, 5)
    driver.step()
    with pytest.raises(RuntimeError, match="out of memory"):
        driver.step()
    assert seen == [1, 2]


def test_an_error_token_fails_its_row_when_its_chunk_is_computed() -> None:
    driver = PlanDriver(FakeEngine(replace(SMALL, error_token_id=45)), chunk_token_count=4)
    job = driver.submit(PROMPT, 5)
    assert driver.step().errors == ()
    (error,) = driver.step().errors
    assert (error.row, error.reason) == (0, "FAKE_ERROR")
    assert job.generated == []
    assert driver.step().errors == ()


def test_a_poisonous_token_ends_the_process() -> None:
    script = f"""
from plan_driver import PlanDriver
from headrace.shard.registry import create_engine
driver = PlanDriver(create_engine("fake", {{"poison_token_id": "45"}}))
driver.submit({PROMPT}, 3)
driver.run()
"""
    path = [*sys.path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {path}\n{script}"], check=False, timeout=60
    )
    assert done.returncode == POISON_EXIT_STATUS


def test_neither_worker_nor_fake_engine_imports_torch() -> None:
    script = """
import sys
import headrace.shard.worker
from headrace.shard.registry import create_engine
create_engine("fake", {})
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_large_vocabulary_is_used_to_its_end() -> None:
    model = FakeModel(vocabulary_size=40, first_drawn_token_id=30)
    tokens = np.array(expected_tokens(PROMPT, 2000, model=model))
    assert set(tokens.tolist()) == set(range(30, 40))
    assert np.bincount(tokens)[30:].min() > 140
