"""Every engine refuses a plan that breaks the contract, and is whole again after a reset."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from plan_driver import GREEDY, PlanDriver

from headrace.contract.errors import PlanRejected
from headrace.contract.pooling import Pooling, PoolingOptions
from headrace.contract.sampling import (
    BannedText,
    LengthPenalty,
    LogprobOptions,
    RowStopRules,
    SamplingParams,
    Watermark,
)
from headrace.contract.step import AdmittedSequence, StepPlan
from headrace.shard.engine import Engine

PROMPT = tuple(range(20, 29))
NEW = AdmittedSequence(
    sequence_id=900,
    token_ids=PROMPT,
    prompt_token_count=len(PROMPT),
    computed_token_count=0,
    block_ids=(100, 101, 102),
    sampling=GREEDY,
    stopping=RowStopRules(token_limit=30),
)
MEAN = PoolingOptions(pooling=Pooling.MEAN)
WHOLE = {"chunk_rows": (2,), "chunk_token_counts": (9,)}


def admit(**changes: object) -> StepPlan:
    return StepPlan(step_id=3, admitted=(replace(NEW, **changes),), **WHOLE)


def sample(**changes: object) -> StepPlan:
    return admit(sampling=SamplingParams(**changes))


# The batch has two rows, of sequences 100 and 101; both decode, and steps 1 and 2 are done.
BROKEN_PLANS: list[tuple[str, StepPlan]] = [
    ("step_id 2", StepPlan(step_id=2)),
    ("sequence 77 is not in the batch", StepPlan(step_id=3, released_sequence_ids=(77,))),
    ("sequence 100 is not", StepPlan(step_id=3, released_sequence_ids=(100, 100))),
    ("sequence 101 is in the batch already", admit(sequence_id=101)),
    ("computed_token_count 9", admit(computed_token_count=9)),
    ("computed_token_count -1", admit(computed_token_count=-1)),
    ("computed_token_count 0", admit(token_ids=())),
    ("prompt_token_count 0", admit(prompt_token_count=0)),
    ("prompt_token_count 10", admit(prompt_token_count=10)),
    ("token_limit 9", admit(stopping=RowStopRules(token_limit=9))),
    ("token_limit 513", admit(stopping=RowStopRules(token_limit=513))),
    ("token_ids has -1", admit(token_ids=(-1, *PROMPT[1:]))),
    ("token_ids has 10000000", admit(token_ids=(*PROMPT[1:], 10_000_000))),
    ("block_ids has 251", admit(block_ids=(1, 2, 251))),
    ("block_ids names a block twice", admit(block_ids=(100, 101, 100))),
    ("a block table for 8 tokens cannot hold 9", admit(block_ids=(100, 101))),
    ("the mean needs every hidden state, and 4 are gone", admit(pooling=MEAN, computed_token_count=4)),
    ("a sequence that is pooled generates nothing", admit(pooling=MEAN, prompt_token_count=8)),
    ("a sequence that is pooled has neither", admit(pooling=MEAN, logprobs=LogprobOptions(sampled=True))),
    ("dimension_count 1000000 is not in", admit(pooling=replace(MEAN, dimension_count=1_000_000))),
    ("block_rows has 2", StepPlan(step_id=3, block_rows=(2,), block_counts=(1,), block_ids=(9,))),
    ("block_rows is not ascending", StepPlan(step_id=3, block_rows=(1, 0), block_counts=(1, 1), block_ids=(8, 9))),
    ("block_rows has 1 entries", StepPlan(step_id=3, block_rows=(0,), block_counts=(1, 1), block_ids=(8, 9))),
    ("block_ids has 1 entries", StepPlan(step_id=3, block_rows=(0,), block_counts=(2,), block_ids=(8,))),
    ("block_ids has -4", StepPlan(step_id=3, block_rows=(0,), block_counts=(1,), block_ids=(-4,))),
    ("block_counts has 0", StepPlan(step_id=3, block_rows=(0, 1), block_counts=(0, 1), block_ids=(8,))),
    ("chunk_rows has -1", StepPlan(step_id=3, chunk_rows=(-1,), chunk_token_counts=(2,))),
    ("chunk_rows is not ascending", StepPlan(step_id=3, chunk_rows=(1, 1), chunk_token_counts=(1, 1))),
    ("chunk_rows has 1 entries", StepPlan(step_id=3, chunk_rows=(1,), chunk_token_counts=())),
    ("chunk_token_counts has 0", StepPlan(step_id=3, chunk_rows=(1,), chunk_token_counts=(0,))),
    ("a chunk of 2 exceeds the 1", StepPlan(step_id=3, chunk_rows=(1,), chunk_token_counts=(2,))),
    ("held_rows has 2", StepPlan(step_id=3, held_rows=(2,))),
    ("held_rows is not ascending", StepPlan(step_id=3, held_rows=(1, 0))),
    (
        "row 1 is in chunk_rows and in held_rows",
        StepPlan(step_id=3, chunk_rows=(1,), chunk_token_counts=(1,), held_rows=(1,)),
    ),
    ("logit_bias has 10000000", sample(logit_bias=((10_000_000, 1.0),))),
    ("banned_text has 10000000", sample(banned_text=BannedText(state_count=0, token_ids=(10_000_000,)))),
]
OPTIONS: list[tuple[str, StepPlan]] = [
    ("sampling.min_p", sample(min_p=0.1)),
    ("sampling.typical_p", sample(typical_p=0.5)),
    ("sampling.repetition_penalty", sample(repetition_penalty=1.2)),
    ("sampling.frequency_penalty", sample(frequency_penalty=0.1)),
    ("sampling.presence_penalty", sample(presence_penalty=0.1)),
    ("sampling.logit_bias", sample(logit_bias=((3, 1.0),))),
    ("sampling.length_penalty", sample(length_penalty=LengthPenalty(start_index=1, decay_factor=1.1))),
    ("sampling.banned_words", sample(banned_text=BannedText(state_count=0, token_ids=(3,)))),
    ("watermark", sample(watermark=Watermark(key=1, gamma=0.5, delta=1.0))),
    ("output.prompt_logprobs", admit(logprobs=LogprobOptions(sampled=True, prompt=True))),
    ("output.processed_logprobs", admit(logprobs=LogprobOptions(sampled=True, processed=True))),
    ("constraint", admit(grammar='start: "a"')),
]


@pytest.fixture
def driver(engine: Engine) -> PlanDriver:
    driver = PlanDriver(engine)
    for _ in range(2):
        driver.submit(PROMPT, 30)
    driver.step()
    driver.step()
    return driver


@pytest.mark.parametrize(("message", "plan"), BROKEN_PLANS, ids=[message for message, _ in BROKEN_PLANS])
def test_a_broken_plan_is_rejected_by_name(driver: PlanDriver, message: str, plan: StepPlan) -> None:
    with pytest.raises(PlanRejected) as caught:
        driver.engine.execute(plan)
    assert message in caught.value.message


@pytest.mark.parametrize(("field", "plan"), OPTIONS, ids=[field for field, _ in OPTIONS])
def test_an_option_is_declared_or_refused(driver: PlanDriver, field: str, plan: StepPlan) -> None:
    if field in driver.engine.description.supported_fields:
        assert driver.engine.execute(plan).token_counts == (1, 1, 1)
        return
    with pytest.raises(PlanRejected, match=f"this engine has no {field}"):
        driver.engine.execute(plan)


def test_the_plan_they_break_is_accepted(driver: PlanDriver) -> None:
    assert driver.engine.execute(admit()).token_counts == (1, 1, 1)


def test_a_row_without_room_for_its_next_token_is_named(driver: PlanDriver) -> None:
    for step_id in (3, 4):
        driver.engine.execute(StepPlan(step_id=step_id))
    with pytest.raises(PlanRejected, match="row 0: a block table for 12 tokens cannot hold 13"):
        driver.engine.execute(StepPlan(step_id=5))


def test_a_reset_makes_it_whole(driver: PlanDriver) -> None:
    with pytest.raises(PlanRejected):
        driver.engine.execute(StepPlan(step_id=3, released_sequence_ids=(1,)))
    driver.engine.reset()
    fresh = PlanDriver(driver.engine)
    job = fresh.submit(PROMPT, 5)
    fresh.run()
    assert job.generated[:2] == driver.rows[0].generated


def test_limits_of_a_step(create: Callable[..., Engine]) -> None:
    engine = create(row_limit=2, token_limit=12)
    assert (engine.description.row_limit, engine.description.token_limit) == (2, 12)
    driver = PlanDriver(engine)
    for _ in range(3):
        driver.submit(PROMPT[:1], 5)
    with pytest.raises(PlanRejected, match="3 rows are more than the limit of 2"):
        driver.step()
    engine.reset()
    driver = PlanDriver(engine)
    for _ in range(2):
        driver.submit(PROMPT, 5)
    with pytest.raises(PlanRejected, match="18 tokens are more than the limit of 12"):
        driver.step()
