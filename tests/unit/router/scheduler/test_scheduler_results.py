"""What becomes of the results, and which of them are not believed."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from scheduler_rig import SchedulerRig, make_request

from headrace.contract.errors import ShardLost
from headrace.contract.pooling import Pooling, PoolingOptions
from headrace.contract.sampling import LogprobOptions
from headrace.contract.step import RowEnd, RowError, RowLogprobs, RowVector, StepResult
from headrace.router.scheduler import Scheduler, SchedulerLimits, SequenceUpdate
from headrace.router.sequence import Sequence, SequenceState

LIMITS = SchedulerLimits(block_size=4, block_count=100, step_token_limit=16, step_row_limit=8, steps_in_flight=2)


def make_scheduler(*prompt_lengths: int, limits: SchedulerLimits = LIMITS) -> tuple[Scheduler, list[Sequence]]:
    scheduler = Scheduler(limits)
    sequences = [
        Sequence(sequence_id=number, request=make_request(range(length), 20), arrival_s=0.0)
        for number, length in enumerate(prompt_lengths, start=1)
    ]
    for sequence in sequences:
        scheduler.submit(sequence)
    return scheduler, sequences


def test_tokens_arrive_in_the_order_of_the_rows() -> None:
    scheduler, (first, second) = make_scheduler(3, 3)
    scheduler.plan()
    updates = scheduler.apply(StepResult(step_id=1, token_counts=(1, 1), token_ids=(40, 41)))
    assert updates == [
        SequenceUpdate(first, (40,), None, None, ()),
        SequenceUpdate(second, (41,), None, None, ()),
    ]
    assert first.token_ids == [0, 1, 2, 40]


def test_a_row_in_the_middle_of_its_prompt_is_no_news() -> None:
    scheduler, (first, _) = make_scheduler(3, 30)
    scheduler.plan()
    updates = scheduler.apply(StepResult(step_id=1, token_counts=(1, 0), token_ids=(40,)))
    assert [update.sequence for update in updates] == [first]


def test_an_ended_row_takes_its_sequence_and_blocks_away() -> None:
    scheduler, (first, second) = make_scheduler(3, 3)
    scheduler.plan()
    scheduler.plan()
    ended = StepResult(
        step_id=1, token_counts=(1, 1), token_ids=(40, 41), ended_rows=(0,), row_ends=(RowEnd.STOP_TOKEN,)
    )
    updates = scheduler.apply(ended)
    assert [(update.token_ids, update.end) for update in updates] == [((40,), RowEnd.STOP_TOKEN), ((41,), None)]
    assert first.state is SequenceState.ENDED
    assert scheduler.cancel(first.sequence_id) is None
    assert scheduler.stats().leased_block_count == 1
    later = scheduler.apply(StepResult(step_id=2, token_counts=(0, 1), token_ids=(42,)))
    assert [update.sequence for update in later] == [second]
    planned = scheduler.plan()
    assert planned is not None
    assert planned.plan.released_sequence_ids == (1,)


def test_a_failed_row_takes_only_itself_away() -> None:
    scheduler, (first, second) = make_scheduler(3, 3)
    scheduler.plan()
    error = RowError(0, "NOT_A_NUMBER", "logits of layer 3")
    updates = scheduler.apply(StepResult(step_id=1, token_counts=(0, 1), token_ids=(41,), errors=(error,)))
    assert updates == [SequenceUpdate(first, (), None, error, ()), SequenceUpdate(second, (41,), None, None, ())]
    assert (first.state, second.state) == (SequenceState.ENDED, SequenceState.RUNNING)
    scheduler.check_integrity()


def test_logprobs_go_to_their_rows() -> None:
    scheduler, (first, second) = make_scheduler(3, 30)
    scheduler.plan()
    prompt = RowLogprobs(row=1, is_prompt=True, logprobs=(-1.0,) * 12, ranks=(1,) * 12)
    sampled = RowLogprobs(row=0, is_prompt=False, logprobs=(-0.5,), ranks=(1,))
    of_prompt = RowLogprobs(row=0, is_prompt=True, logprobs=(-2.0, -3.0), ranks=(4, 5))
    result = StepResult(step_id=1, token_counts=(1, 0), token_ids=(40,), logprobs=(of_prompt, sampled, prompt))
    assert scheduler.apply(result) == [
        SequenceUpdate(first, (40,), None, None, (of_prompt, sampled)),
        SequenceUpdate(second, (), None, None, (prompt,)),
    ]


def test_several_tokens_in_a_step_move_the_sequence_on() -> None:
    scheduler, (sequence,) = make_scheduler(1, limits=replace(LIMITS, steps_in_flight=1))
    scheduler.plan()
    (update,) = scheduler.apply(StepResult(step_id=1, token_counts=(3,), token_ids=(40, 41, 42)))
    assert update.token_ids == (40, 41, 42)
    assert sequence.token_ids == [0, 40, 41, 42]
    planned = scheduler.plan()
    assert planned is not None
    assert planned.plan.chunk_rows == ()
    assert planned.plan.block_rows == (), "three are computed, and the fourth still has a slot"
    scheduler.apply(StepResult(step_id=2, token_counts=(1,), token_ids=(43,)))
    assert scheduler.match_prefix(make_request([0, 40, 41, 42, 43])) == 4
    scheduler.check_integrity()


def test_prompt_logprobs_are_asked_for_until_the_first_token_is_back() -> None:
    rig = SchedulerRig(LIMITS)
    rig.submit(make_request(range(20), prompt_logprobs=True))
    asked = []
    for _ in range(3):
        plan = rig.plan()
        assert plan is not None
        asked += [admitted.logprobs for admitted in plan.admitted]
        rig.plan()
        rig.answer()
        if len(asked) == 1 or rig.sequences[1].generated_token_count:
            rig.lose()
    plan = rig.plan()
    assert plan is not None
    asked += [admitted.logprobs for admitted in plan.admitted]
    assert asked == [LogprobOptions(prompt=True), LogprobOptions(prompt=True), LogprobOptions()]


GOOD = StepResult(step_id=1, token_counts=(1, 0), token_ids=(40,))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"step_id": 2}, "it is for step 2"),
        ({"token_counts": (1,)}, "it has 1 rows in place of 2"),
        ({"token_ids": (40, 41)}, "it has 2 tokens and counts"),
        ({"token_counts": (2, -1)}, "it has 1 tokens and counts"),
        ({"ended_rows": (0,)}, "it ends 1 rows for 0 reasons"),
        ({"ended_rows": (2,), "row_ends": (RowEnd.STOP_TOKEN,)}, "it names a row that is not among 2"),
        ({"errors": (RowError(-1, "REASON", ""),)}, "it names a row that is not among 2"),
        (
            {"logprobs": (RowLogprobs(row=5, is_prompt=False, logprobs=(), ranks=()),)},
            "it names a row that is not among 2",
        ),
        ({"token_counts": (0, 1)}, "row 0 returns 0 tokens"),
        ({"token_counts": (1, 1), "token_ids": (40, 41)}, "row 1 returns 1 tokens"),
    ],
)
def test_a_result_that_does_not_fit_is_not_believed_at_all(changes: Mapping[str, object], problem: str) -> None:
    scheduler, (first, second) = make_scheduler(3, 30)
    scheduler.plan()
    with pytest.raises(ShardLost, match=f"step 1 got an answer that does not fit its plan: {problem}"):
        scheduler.apply(replace(GOOD, **changes))
    assert (first.generated_token_count, second.generated_token_count) == (0, 0)
    assert scheduler.in_flight_count == 1
    scheduler.check_integrity()
    assert [update.sequence for update in scheduler.apply(GOOD)] == [first]


def test_a_result_that_nobody_asked_for_is_not_believed() -> None:
    scheduler, _ = make_scheduler()
    with pytest.raises(ShardLost, match="no step is unanswered"):
        scheduler.apply(GOOD)


def test_a_vector_ends_its_sequence_and_its_blocks_can_be_hit() -> None:
    scheduler = Scheduler(SchedulerLimits(block_size=4, block_count=8, step_token_limit=20, step_row_limit=4))
    sequence = Sequence(sequence_id=1, request=make_request(range(9), pooling=Pooling.LAST), arrival_s=0.0)
    scheduler.submit(sequence)
    planned = scheduler.plan()
    assert planned is not None
    assert planned.plan.admitted[0].pooling == PoolingOptions(pooling=Pooling.LAST)
    pooled = StepResult(
        step_id=1,
        token_counts=(0,),
        token_ids=(),
        ended_rows=(0,),
        row_ends=(RowEnd.POOLED,),
        vectors=(RowVector(0, b"vector"),),
    )
    (update,) = scheduler.apply(pooled)
    assert (update.end, update.vector, update.token_ids) == (RowEnd.POOLED, b"vector", ())
    assert sequence.state is SequenceState.ENDED
    assert scheduler.match_prefix(make_request(range(9))) == 8
    assert scheduler.match_prefix(make_request(range(9), pooling=Pooling.MEAN)) == 0


@pytest.mark.parametrize(
    ("pooling", "fields", "problem"),
    [
        (Pooling.MEAN, {"ended_rows": (0,), "row_ends": (RowEnd.POOLED,)}, "vectors of 0 rows, and 1"),
        (Pooling.MEAN, {"vectors": (RowVector(0, b""),)}, "vectors of 1 rows, and 0"),
        (Pooling.MEAN, {}, "row 0 returns 0 tokens"),
        (Pooling.MEAN, {"ended_rows": (0,), "row_ends": (RowEnd.TOKEN_LIMIT,)}, "row 0 ends without a token"),
        (None, {"ended_rows": (0,), "row_ends": (RowEnd.TOKEN_LIMIT,)}, "row 0 ends without a token"),
        (
            Pooling.MEAN,
            {"token_counts": (1,), "token_ids": (7,), "ended_rows": (0,), "row_ends": (RowEnd.TOKEN_LIMIT,)},
            "row 0 ends with TOKEN_LIMIT",
        ),
        (None, {"ended_rows": (0,), "row_ends": (RowEnd.POOLED,)}, "row 0 ends with POOLED"),
    ],
)
def test_a_vector_comes_with_its_end_and_for_who_asked(
    pooling: Pooling | None, fields: dict[str, Any], problem: str
) -> None:
    scheduler = Scheduler(SchedulerLimits(block_size=4, block_count=8, step_token_limit=20, step_row_limit=4))
    scheduler.submit(Sequence(sequence_id=1, request=make_request(range(3), pooling=pooling), arrival_s=0.0))
    scheduler.plan()
    with pytest.raises(ShardLost, match=problem):
        scheduler.apply(StepResult(**{"step_id": 1, "token_counts": (0,), "token_ids": (), **fields}))
