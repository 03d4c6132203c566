"""What the plans say, column by column."""

import pytest
from scheduler_rig import SchedulerRig, make_request

from headrace.contract.step import StepPlan
from headrace.router.scheduler import SchedulerLimits


def make_rig(**limits: int) -> SchedulerRig:
    defaults = {"block_size": 4, "block_count": 100, "step_token_limit": 16, "step_row_limit": 8}
    return SchedulerRig(SchedulerLimits(**{**defaults, **limits}))


def columns(plan: StepPlan | None) -> dict[str, object]:
    """The columns that are not empty; of the admitted, only the ids."""
    assert plan is not None
    named = {name: getattr(plan, name) for name in StepPlan.__dataclass_fields__ if name != "step_id"}
    named["admitted"] = tuple(admitted.sequence_id for admitted in plan.admitted)
    return {name: column for name, column in named.items() if column}


def test_a_new_sequence_comes_with_all_that_the_shard_needs() -> None:
    rig = make_rig()
    request = make_request(range(6), 5)
    rig.submit(request)
    plan = rig.plan()
    assert plan is not None
    (admitted,) = plan.admitted
    assert plan.step_id == 1
    assert (admitted.sequence_id, admitted.token_ids, admitted.prompt_token_count) == (1, tuple(range(6)), 6)
    assert (admitted.computed_token_count, admitted.block_ids) == (0, (0, 1))
    assert (admitted.sampling, admitted.stopping) == (request.sampling, request.row_stop)
    assert (plan.chunk_rows, plan.chunk_token_counts) == ((0,), (6,))


def test_steady_decoding_needs_no_words() -> None:
    rig = make_rig()
    rig.submit(make_request(range(4)))
    rig.submit(make_request(range(4)))
    assert columns(rig.step()) == {"admitted": (1, 2), "chunk_rows": (0, 1), "chunk_token_counts": (4, 4)}
    assert columns(rig.step()) == {"block_rows": (0, 1), "block_counts": (1, 1), "block_ids": (2, 3)}
    assert [columns(rig.step()) for _ in range(3)] == [{}, {}, {}]
    assert columns(rig.step()) == {"block_rows": (0, 1), "block_counts": (1, 1), "block_ids": (4, 5)}


def test_a_prompt_of_one_token_is_no_chunk() -> None:
    rig = make_rig()
    rig.submit(make_request([7]))
    assert columns(rig.step()) == {"admitted": (1,)}


def test_a_long_prompt_takes_what_decoding_leaves() -> None:
    rig = make_rig(step_token_limit=8)
    rig.submit(make_request([1, 2, 3]))
    rig.submit(make_request([4, 5, 6]))
    rig.submit(make_request(range(15)))
    assert columns(rig.step()) == {"admitted": (1, 2, 3), "chunk_rows": (0, 1, 2), "chunk_token_counts": (3, 3, 2)}
    assert columns(rig.step()) == {"chunk_rows": (2,), "chunk_token_counts": (6,)}
    assert columns(rig.step())["chunk_token_counts"] == (6,)
    assert "chunk_rows" not in columns(rig.step()), "the last token of the prompt is like any other"


@pytest.mark.parametrize(("arrivals", "chunks"), [((2.0, 1.0), (2, 5)), ((1.0, 2.0), (5, 2))])
def test_the_more_urgent_prompt_takes_its_chunk_first(arrivals: tuple[float, float], chunks: tuple[int, int]) -> None:
    rig = make_rig(step_token_limit=7, prefill_chunk_token_limit=5)
    rig.submit(make_request(range(20)), arrivals[0])
    assert columns(rig.step())["chunk_token_counts"] == (7,), "alone it takes more"
    rig.submit(make_request(range(30, 50)), arrivals[1])
    assert columns(rig.step())["chunk_token_counts"] == (5, 2), "the newcomer gets what is left"
    assert columns(rig.step())["chunk_token_counts"] == chunks


def test_a_chunk_limit_lets_prompts_share_a_step() -> None:
    rig = make_rig(prefill_chunk_token_limit=5)
    rig.submit(make_request(range(12)))
    rig.submit(make_request(range(12)))
    assert columns(rig.step()) == {"admitted": (1, 2), "chunk_rows": (0, 1), "chunk_token_counts": (5, 5)}


def test_a_prompt_takes_larger_chunks_while_nobody_else_is_there() -> None:
    rig = make_rig(prefill_chunk_token_limit=5)
    rig.submit(make_request(range(40)))
    assert columns(rig.step())["chunk_token_counts"] == (10,)
    rig.submit(make_request([1, 2, 3]))
    assert columns(rig.step())["chunk_token_counts"] == (5, 3)
    assert columns(rig.step())["chunk_token_counts"] == (5,), "whoever decodes keeps its pace"


def test_row_numbers_count_from_after_the_release_and_the_admission() -> None:
    rig = make_rig()
    first = rig.submit(make_request([1, 2, 3]))
    rig.submit(make_request([4, 5, 6]))
    rig.submit(make_request([7, 8, 9]))
    rig.step()
    rig.step()
    rig.cancel(first)
    rig.submit(make_request([1, 2]))
    assert columns(rig.step()) == {
        "released_sequence_ids": (1,),
        "admitted": (4,),
        "block_rows": (0, 1),
        "block_counts": (1, 1),
        "block_ids": (3, 4),
        "chunk_rows": (2,),
        "chunk_token_counts": (2,),
    }


def test_two_steps_are_planned_before_the_first_token_is_back() -> None:
    rig = make_rig(steps_in_flight=2)
    rig.submit(make_request([1, 2, 3]))
    assert columns(rig.plan()) == {"admitted": (1,), "chunk_rows": (0,), "chunk_token_counts": (3,)}
    assert columns(rig.plan()) == {}
    assert rig.plan() is None, "two are in flight"
    rig.answer()
    assert columns(rig.plan()) == {"block_rows": (0,), "block_counts": (1,), "block_ids": (1,)}


def test_a_row_whose_last_token_is_on_its_way_is_held() -> None:
    rig = make_rig(steps_in_flight=2)
    rig.submit(make_request([1, 2, 3], new_token_count=1))
    rig.submit(make_request([4, 5, 6], new_token_count=3))
    rig.plan()
    assert columns(rig.plan()) == {"held_rows": (0,)}
    rig.answer()
    assert columns(rig.plan())["released_sequence_ids"] == (1,)


def test_no_plan_while_all_that_could_run_waits_for_tokens() -> None:
    rig = make_rig(steps_in_flight=2)
    rig.submit(make_request([1, 2, 3], new_token_count=1))
    rig.plan()
    assert rig.plan() is None
    assert rig.scheduler.has_work


def test_the_shard_is_told_of_the_last_release_too() -> None:
    rig = make_rig()
    assert rig.plan() is None
    rig.cancel(rig.submit(make_request([1, 2])))
    assert rig.plan() is None, "it never had a row"
    sequence = rig.submit(make_request([1, 2]))
    rig.step()
    rig.cancel(sequence)
    assert rig.scheduler.has_work
    assert columns(rig.step()) == {"released_sequence_ids": (2,)}
    assert not rig.scheduler.has_work
    assert rig.plan() is None


def test_no_more_rows_than_allowed() -> None:
    rig = make_rig(step_row_limit=2)
    for _ in range(3):
        rig.submit(make_request([1, 2], new_token_count=2))
    assert columns(rig.step())["admitted"] == (1, 2)
    assert "admitted" not in columns(rig.step())
    assert columns(rig.step()) == {
        "released_sequence_ids": (1, 2), "admitted": (3,), "chunk_rows": (0,), "chunk_token_counts": (2,),
    }  # fmt: skip


def test_no_more_rows_than_tokens_so_that_all_can_decode() -> None:
    rig = make_rig(step_token_limit=2)
    for _ in range(3):
        rig.submit(make_request([7], new_token_count=4))
    assert columns(rig.step())["admitted"] == (1, 2)
    assert columns(rig.step()) == {}


def test_the_queue_is_left_in_order_of_urgency() -> None:
    limits = SchedulerLimits(
        block_size=4, block_count=100, step_token_limit=16, step_row_limit=8, priority_head_start_s=10.0
    )
    rig = SchedulerRig(limits)
    rig.submit(make_request([1], priority=0), arrival_s=20.0)
    rig.submit(make_request([1], priority=2), arrival_s=35.0)
    rig.submit(make_request([1], priority=-1), arrival_s=4.0)
    rig.submit(make_request([1], priority=0), arrival_s=20.0)
    assert columns(rig.step())["admitted"] == (3, 2, 1, 4)


def test_a_sequence_starts_once() -> None:
    rig = make_rig()
    sequence = rig.submit(make_request([1, 2]))
    planned = rig.scheduler.plan()
    assert planned is not None
    assert planned.started == (sequence,)
    rig.scheduler.lose_engine()
    again = rig.scheduler.plan()
    assert again is not None
    assert [admitted.sequence_id for admitted in again.plan.admitted] == [1]
    assert again.started == ()


def test_step_ids_go_on_after_a_loss() -> None:
    rig = make_rig()
    rig.submit(make_request([1, 2]))
    first = rig.plan()
    rig.lose()
    second = rig.plan()
    assert first is not None
    assert second is not None
    assert (first.step_id, second.step_id) == (1, 2)


def test_what_was_done_is_counted() -> None:
    rig = make_rig(steps_in_flight=2)
    rig.submit(make_request(range(10), new_token_count=3))
    rig.run_to_end()
    rig.submit(make_request(range(10), new_token_count=3))
    rig.run_to_end()
    stats = rig.scheduler.stats()
    assert (stats.prompt_token_count, stats.cached_token_count, stats.generated_token_count) == (20, 8, 6)
    assert stats.computed_token_count == 12 + 4
    assert stats.row_count == 6
    assert stats.step_count == 6 + 2, "each time, a step tells the shard that the row left"
