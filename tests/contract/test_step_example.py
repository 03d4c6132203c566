"""The example in docs/step-contract.md runs as it says there."""

from dataclasses import replace

from headrace.contract.sampling import RowStopRules, SamplingParams
from headrace.contract.step import AdmittedSequence, RowEnd, StepPlan
from headrace.shard.engines.fake import FakeEngine, FakeOptions
from headrace.shard.engines.fake_oracle import expected_tokens

SEVEN = tuple(range(100, 106))
EIGHT = tuple(range(200, 204))


def admitted(sequence_id: int, token_ids: tuple[int, ...], block_id: int) -> AdmittedSequence:
    return AdmittedSequence(
        sequence_id=sequence_id,
        token_ids=token_ids,
        prompt_token_count=len(token_ids),
        computed_token_count=0,
        block_ids=(block_id,),
        sampling=SamplingParams(temperature=0.0),
        stopping=RowStopRules(token_limit=64),
    )


PLANS = (
    StepPlan(step_id=1, admitted=(admitted(7, SEVEN, 0),), chunk_rows=(0,), chunk_token_counts=(4,)),
    StepPlan(
        step_id=2,
        admitted=(admitted(8, EIGHT, 2),),
        block_rows=(0,),
        block_counts=(1,),
        block_ids=(1,),
        chunk_rows=(0, 1),
        chunk_token_counts=(2, 4),
    ),
    StepPlan(step_id=3, released_sequence_ids=(7,), block_rows=(0,), block_counts=(1,), block_ids=(1,)),
)


def test_the_example_runs_as_documented() -> None:
    options = FakeOptions(block_size=4, block_count=4)
    engine = FakeEngine(options)
    results = [engine.execute(plan) for plan in PLANS]
    assert [result.token_counts for result in results] == [(0,), (1, 1), (1,)]
    assert [result.ended_rows for result in results] == [(), (), ()]
    of_seven = expected_tokens(SEVEN, 1, model=options.model)
    of_eight = expected_tokens(EIGHT, 2, model=options.model)
    assert [result.token_ids for result in results] == [(), (of_seven[0], of_eight[0]), (of_eight[1],)]


def test_a_row_that_ends_by_itself_computes_nothing_until_it_is_released() -> None:
    """As the example says of token 31: here the shard knows it as the end of the sequence."""
    options = FakeOptions(block_size=4, block_count=4)
    [ending, _] = expected_tokens(EIGHT, 2, model=options.model)
    eight = replace(admitted(8, EIGHT, 2), stopping=RowStopRules(token_limit=64, end_of_sequence_token_ids=(ending,)))
    engine = FakeEngine(options)
    engine.execute(PLANS[0])
    second = engine.execute(replace(PLANS[1], admitted=(eight,)))
    assert (second.ended_rows, second.row_ends) == ((1,), (RowEnd.END_OF_SEQUENCE,))
    third = engine.execute(PLANS[2])
    assert (third.token_counts, third.token_ids, third.ended_rows) == ((0,), (), ())
