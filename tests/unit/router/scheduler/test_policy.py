import pytest
from scheduler_rig import make_request

from headrace.contract.errors import InvalidRequest, StartupError
from headrace.router import policy
from headrace.router.digest_chain import DigestChain
from headrace.router.kv_memory import KvMemory
from headrace.router.policy import SchedulerLimits
from headrace.router.row import Row
from headrace.router.sequence import Sequence

LIMITS = SchedulerLimits(block_size=4, block_count=5, step_token_limit=16, step_row_limit=8, priority_head_start_s=10.0)


def make_sequence(sequence_id: int = 1, *, arrival_s: float = 0.0, priority: int = 0, length: int = 4) -> Sequence:
    request = make_request(range(length), priority=priority)
    return Sequence(sequence_id=sequence_id, request=request, arrival_s=arrival_s)


def make_row(sequence: Sequence) -> Row:
    chain = DigestChain.of(sequence.request, 4)
    table = KvMemory(block_size=4, block_count=100).lease(chain, sequence.token_ids, may_hit=False, reserved_count=0)
    assert table is not None
    return Row(sequence=sequence, table=table)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"arrival_s": 1.0}, {"arrival_s": 2.0}),
        ({"arrival_s": 9.0, "priority": 1}, {"arrival_s": 0.0}),
        ({"arrival_s": 0.0}, {"arrival_s": 11.0, "priority": 1}),
        ({"arrival_s": 0.0, "priority": -1}, {"arrival_s": 11.0}),
    ],
    ids=["earlier first", "priority overtakes", "within its head start only", "low priority ages too"],
)
def test_urgency(first: dict[str, int], second: dict[str, int]) -> None:
    assert policy.urgency(make_sequence(**first), LIMITS) < policy.urgency(make_sequence(**second), LIMITS)


def test_the_least_urgent_gives_way_and_the_youngest_among_equals() -> None:
    urgent = make_row(make_sequence(4, arrival_s=5.0, priority=2))
    old = make_row(make_sequence(1, arrival_s=3.0))
    twin = make_row(make_sequence(2, arrival_s=3.0))
    assert policy.choose_victim([twin, old, urgent], LIMITS) is twin
    assert policy.choose_victim([old, urgent], LIMITS) is old
    assert policy.choose_victim([urgent], LIMITS) is urgent


@pytest.mark.parametrize(
    ("chunk_limit", "budget", "expected", "alone"),
    [
        (None, 100, 30, 30),
        (None, 20, 20, 20),
        (8, 100, 8, 16),
        (8, 12, 8, 12),
        (8, 5, 5, 5),
        (8, 0, 0, 0),
        (20, 99, 20, 30),
    ],
)
def test_a_chunk_keeps_to_every_limit(chunk_limit: int | None, budget: int, expected: int, alone: int) -> None:
    limits = SchedulerLimits(
        block_size=4, block_count=20, step_token_limit=100, step_row_limit=8, prefill_chunk_token_limit=chunk_limit
    )
    row = make_row(make_sequence(length=30))
    assert policy.choose_chunk(row, budget, limits, is_alone=False) == expected
    assert policy.choose_chunk(row, budget, limits, is_alone=True) == alone


def fit(prompt_token_count: int, new_token_count: int) -> None:
    request = make_request(range(prompt_token_count), new_token_count)
    policy.require_fit(Sequence(sequence_id=1, request=request, arrival_s=0.0), LIMITS)


@pytest.mark.parametrize(("prompt_token_count", "new_token_count"), [(20, 1), (1, 20), (10, 11)])
def test_what_fills_all_blocks_fits(prompt_token_count: int, new_token_count: int) -> None:
    fit(prompt_token_count, new_token_count)


@pytest.mark.parametrize(
    ("prompt_token_count", "new_token_count", "field", "description"),
    [
        (21, 1, "prompt", "has 21 tokens; the model server has KV memory for 20"),
        (20, 2, "stopping.max_new_token_count", "at most 1 can be generated"),
        (5, 17, "stopping.max_new_token_count", "17 after a prompt of 5 tokens .* 20 tokens; at most 16"),
        (5, 0, "prompt", "leaves nothing to generate: 5 tokens of at most 5"),
    ],
)
def test_what_can_never_run_is_refused(
    prompt_token_count: int, new_token_count: int, field: str, description: str
) -> None:
    with pytest.raises(InvalidRequest, match=description) as caught:
        fit(prompt_token_count, new_token_count)
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block_size", 0),
        ("block_count", 0),
        ("step_token_limit", 0),
        ("step_row_limit", -1),
        ("steps_in_flight", 0),
        ("prefill_chunk_token_limit", 0),
        ("priority_head_start_s", -0.5),
    ],
)
def test_limits_that_make_no_sense_stop_the_start(field: str, value: float) -> None:
    fields: dict[str, int] = {"block_size": 4, "block_count": 5, "step_token_limit": 16, "step_row_limit": 8}
    with pytest.raises(StartupError, match=f"{field}: {value}"):
        SchedulerLimits(**{**fields, field: value})


def test_no_more_rows_run_than_can_decode_in_one_step() -> None:
    limits = SchedulerLimits(block_size=4, block_count=5, step_token_limit=3, step_row_limit=8)
    assert limits.running_limit == 3
    assert LIMITS.running_limit == 8


def test_an_admission_leaves_a_block_for_each_that_may_need_one() -> None:
    growing = make_row(make_sequence(length=4))
    filled = make_row(make_sequence(length=15))
    filled.table.grow(2)
    assert policy.growth_reserve([growing, filled, growing]) == 2
