"""Who gets KV blocks, who gives them back, and what can be hit."""

import pytest
from scheduler_rig import SchedulerRig, expected_tokens, make_request

from headrace.contract.errors import InvalidRequest
from headrace.contract.step import StepPlan
from headrace.router.scheduler import SchedulerLimits
from headrace.router.sequence import Sequence, SequenceState


def make_rig(**limits: int) -> SchedulerRig:
    defaults = {"block_size": 4, "block_count": 10, "step_token_limit": 16, "step_row_limit": 8}
    return SchedulerRig(SchedulerLimits(**{**defaults, **limits}))


def leased(rig: SchedulerRig) -> int:
    rig.check()
    return rig.scheduler.stats().leased_block_count


def test_what_can_never_fit_is_refused_and_leaves_no_trace() -> None:
    rig = make_rig()
    with pytest.raises(InvalidRequest, match="at most 21 can be generated"):
        rig.submit(make_request(range(20), new_token_count=22))
    assert not rig.scheduler.has_work
    rig.submit(make_request(range(20), new_token_count=21))
    rig.run_to_end()


@pytest.mark.parametrize("step_count", [0, 1, 2, 3, 4], ids=["queued", "prefill", "prefill", "decode", "decode"])
def test_cancelling_frees_all_blocks_at_once(step_count: int) -> None:
    rig = make_rig(step_token_limit=8, steps_in_flight=2)
    sequence = rig.submit(make_request(range(20)))
    for _ in range(step_count):
        rig.plan()
        rig.plan()
        rig.answer()
    rig.plan()
    rig.cancel(sequence)
    assert leased(rig) == 0
    assert sequence.state is SequenceState.ENDED
    rig.run_to_end()
    assert rig.shard.rows == []


def test_late_tokens_of_a_cancelled_sequence_are_dropped() -> None:
    rig = make_rig(steps_in_flight=2)
    sequence = rig.submit(make_request(range(4)))
    other = rig.submit(make_request(range(5, 9)))
    rig.plan()
    rig.plan()
    rig.cancel(sequence)
    updates = [*rig.answer(), *rig.answer()]
    assert [update.sequence for update in updates] == [other, other]
    assert sequence.generated_token_count == 0


def test_blocks_of_a_cancelled_sequence_may_be_used_while_its_step_is_running() -> None:
    rig = make_rig(block_count=4, steps_in_flight=2)
    sequence = rig.submit(make_request(range(12), new_token_count=4))
    rig.plan()
    rig.cancel(sequence)
    rig.submit(make_request(range(20, 32), new_token_count=4))
    plan = rig.plan()
    assert plan is not None
    assert plan.admitted[0].block_ids == (0, 1, 2), "the blocks that the first step may still be writing"
    rig.run_to_end()


def test_a_prefix_is_shared_from_when_it_is_computed() -> None:
    rig = make_rig(steps_in_flight=2)
    rig.submit(make_request([*range(8), 20, 21]))
    rig.plan()
    early = rig.submit(make_request([*range(8), 30]))
    rig.plan()
    rig.answer()
    late = rig.submit(make_request([*range(8), 40]))
    rig.plan()
    assert (early.cached_token_count, late.cached_token_count) == (0, 8)
    rig.run_to_end()


@pytest.mark.parametrize(
    ("prompt", "hit_count"),
    [
        ([*range(12), 30], 12),
        (list(range(12)), 8),
        ([*range(8), 30, 31, 32, 33, 34], 8),
        ([30, *range(1, 12)], 0),
        (list(range(4)), 0),
    ],
    ids=["all of it", "never the last token", "two blocks", "a different start", "a prompt of one block"],
)
def test_only_what_differs_is_computed(prompt: list[int], hit_count: int) -> None:
    rig = make_rig(block_count=20)
    rig.submit(make_request(range(12)))
    rig.run_to_end()
    before = rig.shard.computed_count
    sequence = rig.submit(make_request(prompt, new_token_count=1))
    assert rig.scheduler.match_prefix(sequence.request) == hit_count
    rig.run_to_end()
    assert sequence.cached_token_count == hit_count
    assert rig.shard.computed_count - before == len(prompt) - hit_count


@pytest.mark.parametrize(
    "fields",
    [{"cache_salt": "two"}, {"cache_salt": ""}, {"adapter": "a"}, {"cache_salt": "one", "prompt_logprobs": True}],
    ids=["another salt", "no salt", "another adapter", "prompt log-probabilities"],
)
def test_nothing_is_shared_with(fields: dict[str, str]) -> None:
    rig = make_rig()
    rig.submit(make_request(range(12), cache_salt="one"))
    rig.run_to_end()
    sequence = rig.submit(make_request(range(12), **fields))  # type: ignore[arg-type]
    assert rig.scheduler.match_prefix(sequence.request) == 0
    rig.run_to_end()
    assert sequence.cached_token_count == 0


def test_generated_tokens_can_be_hit() -> None:
    rig = make_rig()
    sequence = rig.submit(make_request(range(6), new_token_count=7))
    rig.run_to_end()
    turn = rig.submit(make_request([*sequence.token_ids, 1, 2]))
    rig.run_to_end()
    assert turn.cached_token_count == 12, "prompt and answer, up to the last full block"


def test_blocks_that_were_never_computed_are_never_hit() -> None:
    rig = make_rig(step_token_limit=6, steps_in_flight=1)
    sequence = rig.submit(make_request(range(16)))
    rig.step()
    rig.plan()
    rig.cancel(sequence)
    rig.answer()
    again = rig.submit(make_request(range(16)))
    rig.run_to_end()
    assert again.cached_token_count == 4, "of 16 planned, 6 were answered while it lived"


def test_a_row_that_failed_leaves_nothing_to_hit() -> None:
    rig = make_rig(step_token_limit=8)
    rig.submit(make_request(range(16)))
    rig.shard.failing_ids.add(1)
    rig.step()
    assert leased(rig) == 0
    assert rig.scheduler.match_prefix(make_request(range(16))) == 0
    rig.run_to_end()


def test_looking_a_prefix_up_changes_nothing() -> None:
    rig = make_rig(block_count=6)
    for start in (0, 20):
        rig.submit(make_request(range(start, start + 9), new_token_count=1))
        rig.run_to_end()
    assert rig.scheduler.match_prefix(make_request(range(9))) == 8
    rig.submit(make_request(range(30, 42), new_token_count=1))
    rig.run_to_end()
    assert rig.scheduler.match_prefix(make_request(range(9))) == 4, "still the least recently used"
    assert rig.scheduler.match_prefix(make_request(range(20, 29))) == 8


def test_a_sequence_that_does_not_fit_yet_costs_the_cache_nothing() -> None:
    rig = make_rig(block_count=8)
    rig.submit(make_request(range(9), new_token_count=1))
    rig.run_to_end()
    rig.submit(make_request(range(20, 36), new_token_count=4))
    rig.step()
    rig.submit(make_request(range(40, 60), new_token_count=4))
    rig.step()
    assert rig.scheduler.stats().waiting_count == 1
    assert rig.scheduler.match_prefix(make_request(range(9))) == 8
    rig.run_to_end()


def test_nobody_overtakes_a_sequence_that_does_not_fit_yet() -> None:
    rig = make_rig(block_count=8)
    running = rig.submit(make_request(range(20), new_token_count=4))
    rig.step()
    large = rig.submit(make_request(range(30, 50), new_token_count=4))
    small = rig.submit(make_request([1], new_token_count=1))
    rig.step()
    assert [running.state, large.state, small.state] == ["running", "waiting", "waiting"]
    rig.run_to_end()


def test_an_admission_leaves_a_block_for_everybody_to_grow() -> None:
    rig = make_rig(block_count=4)
    rig.submit(make_request(range(8)))
    rig.step()
    newcomer = rig.submit(make_request(range(20, 28)))
    rig.step()
    assert newcomer.state is SequenceState.WAITING, "two blocks were left, and it would have taken both"
    rig.run_to_end()


def test_nothing_is_left_for_those_that_have_all_they_need() -> None:
    rig = make_rig(block_count=4)
    rig.submit(make_request(range(6), new_token_count=3))
    rig.step()
    newcomer = rig.submit(make_request(range(20, 26), new_token_count=3))
    rig.step()
    assert newcomer.state is SequenceState.RUNNING
    rig.run_to_end()


def test_a_flush_frees_what_nobody_uses() -> None:
    rig = make_rig()
    rig.submit(make_request(range(9), new_token_count=1))
    rig.run_to_end()
    running = rig.submit(make_request([*range(4), 30, 31, 32, 33, 34]))
    rig.step()
    assert running.cached_token_count == 4
    assert rig.scheduler.flush_prefix_cache() == 1, "what a running sequence uses stays"
    assert rig.scheduler.match_prefix(make_request(range(9))) == 4
    rig.run_to_end()


class TestPreemption:
    """Three sequences of 8 tokens in 8 blocks, of which each will want 5."""

    def make_rig(self, **limits: int) -> SchedulerRig:
        rig = make_rig(block_count=9, step_token_limit=64, **limits)
        for start, arrival_s in ((0, 1.0), (10, 2.0), (20, 3.0)):
            rig.submit(make_request(range(start, start + 7), new_token_count=13), arrival_s)
        return rig

    def run_until_preemption(self, rig: SchedulerRig) -> StepPlan:
        """Returns the plan in which somebody gives way, as many steps in flight as allowed."""
        for _ in range(50):
            plan = rig.plan()
            assert plan is not None
            if rig.scheduler.stats().preemption_count:
                return plan
            if len(rig.answers) == rig.limits.steps_in_flight:
                rig.answer()
        pytest.fail("nobody was preempted")

    def states(self, rig: SchedulerRig) -> list[SequenceState]:
        return [sequence.state for sequence in rig.sequences.values()]

    def test_the_youngest_gives_way_and_loses_no_token(self) -> None:
        rig = self.make_rig()
        first, second, third = rig.sequences.values()
        self.run_until_preemption(rig)
        assert self.states(rig) == ["running", "running", "waiting"]
        assert third.preemption_count == 1
        assert third.generated_token_count > 0
        rig.run_to_end()
        for sequence in (first, second, third):
            assert sequence.token_ids == expected_tokens(sequence)

    def test_priority_counts_more_than_age(self) -> None:
        limits = SchedulerLimits(
            block_size=4, block_count=9, step_token_limit=64, step_row_limit=8, priority_head_start_s=10.0
        )
        rig = SchedulerRig(limits)
        for start, priority in ((0, 0), (10, 0), (20, 1)):
            rig.submit(make_request(range(start, start + 7), new_token_count=13, priority=priority), start / 10)
        self.run_until_preemption(rig)
        assert self.states(rig) == ["running", "waiting", "running"]
        rig.run_to_end()

    def test_who_grows_first_does_not_matter(self) -> None:
        """The youngest needs the block, and gives way itself rather than take it from an older one."""
        rig = make_rig(block_count=4, step_token_limit=64)
        old = rig.submit(make_request(range(5), new_token_count=12), arrival_s=1.0)
        young = rig.submit(make_request(range(20, 24), new_token_count=12), arrival_s=2.0)
        while young.preemption_count == 0:
            rig.step()
        assert (old.state, young.state) == (SequenceState.RUNNING, SequenceState.WAITING)
        assert old.preemption_count == 0
        rig.run_to_end()
        assert old.preemption_count == 0

    def test_it_comes_back_to_its_place_and_to_its_own_blocks(self) -> None:
        rig = self.make_rig()
        _, second, third = rig.sequences.values()
        self.run_until_preemption(rig)
        latecomer = rig.submit(make_request([1], new_token_count=1), arrival_s=9.0)
        rig.cancel(second)
        rig.answer()
        plan = rig.plan()
        assert plan is not None
        assert plan.admitted[0].sequence_id == third.sequence_id
        assert latecomer.state is SequenceState.WAITING
        assert plan.admitted[0].computed_token_count > 0
        assert third.cached_token_count == 0, "what it found first, not what it finds again"
        rig.run_to_end()

    def test_nobody_joins_in_the_plan_that_preempts(self) -> None:
        rig = make_rig(block_count=7, step_token_limit=64)
        rig.submit(make_request(range(7), new_token_count=13), arrival_s=1.0)
        young = rig.submit(make_request(range(20, 36), new_token_count=10), arrival_s=2.0)
        while rig.scheduler.stats().free_block_count > 0:
            rig.step()
        urgent = rig.submit(make_request([1], new_token_count=1), arrival_s=0.0)
        plan = self.run_until_preemption(rig)
        assert plan.released_sequence_ids == (young.sequence_id,)
        assert plan.admitted == ()
        rig.answer()
        plan = rig.plan()
        assert plan is not None
        assert [admitted.sequence_id for admitted in plan.admitted] == [urgent.sequence_id], "there was room before"
        rig.run_to_end()

    def test_it_waits_for_the_tokens_that_are_on_their_way(self) -> None:
        rig = self.make_rig(steps_in_flight=2)
        first, second, third = rig.sequences.values()
        self.run_until_preemption(rig)
        assert len(rig.answers) == 2
        known_count = len(third.token_ids)
        rig.cancel(first)
        rig.cancel(second)
        rig.answer()
        assert len(third.token_ids) == known_count + 1, "a token of the step before"
        plan = rig.plan()
        assert plan is not None
        assert [len(admitted.token_ids) for admitted in plan.admitted] == [known_count + 1]
        rig.run_to_end()

    def test_it_can_end_while_it_waits(self) -> None:
        rig = make_rig(block_count=4, steps_in_flight=3)
        rig.submit(make_request(range(4), new_token_count=9), arrival_s=1.0)
        young = rig.submit(make_request(range(20, 25), new_token_count=4), arrival_s=2.0)
        plan = self.run_until_preemption(rig)
        assert plan.released_sequence_ids == (young.sequence_id,)
        assert young.generated_token_count == 3, "the last one is on its way"
        rig.answer()
        assert young.state is SequenceState.ENDED
        assert young.token_ids == expected_tokens(young)
        rig.run_to_end()

    def test_it_can_be_cancelled_while_it_waits(self) -> None:
        rig = self.make_rig(steps_in_flight=2)
        *_, third = rig.sequences.values()
        self.run_until_preemption(rig)
        rig.cancel(third)
        rig.run_to_end()
        assert rig.scheduler.stats().waiting_token_count == 0

    def test_everybody_reaches_the_end_in_the_smallest_memory(self) -> None:
        rig = make_rig(block_count=5, block_size=2, step_token_limit=4, steps_in_flight=2)
        sequences: list[Sequence] = [
            rig.submit(make_request(range(start, start + 3), new_token_count=8), float(start)) for start in range(6)
        ]
        rig.run_to_end()
        assert all(sequence.token_ids == expected_tokens(sequence) for sequence in sequences)
        assert sequences[0].preemption_count == 0
