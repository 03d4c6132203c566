"""What happens when the shard dies, when sequences move, and when time runs out."""

import pytest
from scheduler_rig import SchedulerRig, expected_tokens, make_request

from headrace.router.scheduler import SchedulerLimits
from headrace.router.sequence import Sequence, SequenceState


def make_rig(**limits: int) -> SchedulerRig:
    defaults = {"block_size": 4, "block_count": 50, "step_token_limit": 32, "step_row_limit": 8, "steps_in_flight": 2}
    return SchedulerRig(SchedulerLimits(**{**defaults, **limits}))


def submit(rig: SchedulerRig, *lengths: int, new_token_count: int = 8) -> list[Sequence]:
    return [
        rig.submit(make_request(range(number, number + length), new_token_count), float(number))
        for number, length in enumerate(lengths)
    ]


def running(rig: SchedulerRig) -> list[int]:
    return [sequence.sequence_id for sequence in rig.sequences.values() if sequence.state is SequenceState.RUNNING]


class TestLosingTheEngine:
    def test_everybody_waits_again_with_the_tokens_that_came_back(self) -> None:
        rig = make_rig()
        sequences = submit(rig, 4, 5)
        rig.step()
        rig.step()
        assert rig.lose() == []
        assert [sequence.state for sequence in sequences] == [SequenceState.WAITING] * 2
        assert [sequence.generated_token_count for sequence in sequences] == [2, 2]
        stats = rig.scheduler.stats()
        assert (stats.free_block_count, stats.in_flight_count, stats.waiting_count) == (50, 0, 2)
        rig.run_to_end()
        assert all(sequence.token_ids == expected_tokens(sequence) for sequence in sequences)

    def test_nothing_of_the_old_cache_is_hit(self) -> None:
        rig = make_rig()
        submit(rig, 12)
        rig.run_to_end()
        rig.lose()
        again = rig.submit(make_request(range(12)))
        rig.run_to_end()
        assert again.cached_token_count == 0

    def test_who_was_computing_becomes_suspect(self) -> None:
        rig = make_rig(step_row_limit=2)
        computing, cancelled, waiting = submit(rig, 4, 5, 6)
        rig.plan()
        rig.cancel(cancelled)
        rig.lose()
        assert [computing.is_suspect, cancelled.is_suspect, waiting.is_suspect] == [True, False, False]

    def test_nobody_is_suspect_when_it_dies_idle(self) -> None:
        rig = make_rig(steps_in_flight=1)
        sequences = submit(rig, 4, 5)
        rig.step()
        rig.lose()
        assert not any(sequence.is_suspect for sequence in sequences)

    def test_suspects_come_back_one_by_one(self) -> None:
        rig = make_rig(steps_in_flight=1)
        submit(rig, 4, 5, 6)
        rig.plan()
        rig.lose()
        fresh = rig.submit(make_request([7, 7]), arrival_s=0.5)
        admitted: list[tuple[int, ...]] = []
        for _ in range(4):
            plan = rig.step()
            assert plan is not None
            admitted.append(tuple(sequence.sequence_id for sequence in plan.admitted))
        assert admitted == [(1,), (fresh.sequence_id, 2), (3,), ()]
        assert running(rig) == [1, 2, 3, fresh.sequence_id]

    def test_with_two_steps_in_flight_the_first_token_clears_nobody(self) -> None:
        rig = make_rig()
        submit(rig, 4, 5)
        rig.plan()
        rig.plan()
        rig.lose()
        rig.step()
        assert running(rig) == [1]
        rig.step()
        rig.plan()
        assert running(rig) == [1, 2]

    def test_the_one_that_kills_twice_is_refused_and_the_others_live(self) -> None:
        rig = make_rig(steps_in_flight=1)
        first, second, third = submit(rig, 4, 5, 6)
        rig.plan()
        rig.lose()
        rig.step()
        rig.plan()
        assert running(rig) == [1, 2]
        assert rig.lose() == [second]
        assert (first.loss_count, second.loss_count, third.loss_count) == (1, 2, 1)
        assert second.state is SequenceState.ENDED
        rig.run_to_end()
        assert first.token_ids == expected_tokens(first)
        assert third.token_ids == expected_tokens(third)

    def test_a_suspect_is_suspect_elsewhere_too(self) -> None:
        rig, other = make_rig(steps_in_flight=1), make_rig(steps_in_flight=1)
        submit(rig, 4, 5)
        rig.plan()
        rig.lose()
        other.come_back(rig.evacuate())
        other.delivered = {1: [], 2: []}
        other.started_ids = {1, 2}
        plan = other.step()
        assert plan is not None
        assert [admitted.sequence_id for admitted in plan.admitted] == [1]
        other.run_to_end()

    def test_a_suspect_that_was_cancelled_is_waited_for(self) -> None:
        rig = make_rig()
        first, _ = submit(rig, 4, 5)
        rig.plan()
        rig.lose()
        rig.plan()
        rig.cancel(first)
        assert rig.plan() is not None, "the release"
        assert running(rig) == []
        rig.answer()
        rig.plan()
        assert running(rig) == [2]
        rig.run_to_end()


class TestEvacuating:
    def test_takes_everybody_the_most_urgent_first(self) -> None:
        rig = make_rig(step_row_limit=2)
        sequences = submit(rig, 4, 5, 6)
        rig.step()
        early = rig.submit(make_request([1]), arrival_s=-1.0)
        assert rig.evacuate() == [early, *sequences]
        stats = rig.scheduler.stats()
        assert (stats.waiting_count, stats.running_count, stats.leased_block_count) == (0, 0, 0)
        rig.check()

    def test_tokens_that_come_too_late_are_dropped(self) -> None:
        rig = make_rig()
        (sequence,) = submit(rig, 4)
        rig.plan()
        rig.plan()
        rig.come_back(rig.evacuate())
        assert [*rig.answer(), *rig.answer()] == []
        assert sequence.generated_token_count == 0
        plan = rig.plan()
        assert plan is not None
        assert plan.released_sequence_ids == (1,)
        assert [admitted.sequence_id for admitted in plan.admitted] == [1], "at once a leaver and a joiner"
        rig.run_to_end()
        assert sequence.token_ids == expected_tokens(sequence)

    def test_the_shard_is_told(self) -> None:
        rig = make_rig()
        submit(rig, 4, 5)
        rig.step()
        rig.evacuate()
        assert rig.scheduler.has_work
        rig.step()
        rig.step()
        assert rig.shard.rows == []
        assert not rig.scheduler.has_work


class TestDeadlines:
    @pytest.mark.parametrize("step_count", [0, 1, 3], ids=["queued", "prefill", "decode"])
    def test_ends_a_sequence_wherever_it_is(self, step_count: int) -> None:
        rig = make_rig(step_token_limit=6)
        sequence = rig.submit(make_request(range(10), deadline_s=5.0))
        for _ in range(step_count):
            rig.step()
        assert rig.scheduler.expire(4.9) == []
        assert rig.scheduler.expire(5.0) == [sequence]
        assert sequence.state is SequenceState.ENDED
        assert rig.scheduler.stats().leased_block_count == 0
        assert rig.scheduler.expire(9.0) == []
        rig.scheduler.check_integrity()

    def test_an_expired_sequence_never_reaches_the_shard(self) -> None:
        rig = make_rig()
        rig.submit(make_request(range(10), deadline_s=5.0))
        rig.scheduler.expire(6.0)
        assert rig.scheduler.plan() is None

    def test_ends_them_in_the_order_of_their_deadlines(self) -> None:
        rig = make_rig()
        late = rig.submit(make_request([1], deadline_s=5.0))
        rig.submit(make_request([1]))
        early = rig.submit(make_request([1], deadline_s=2.0))
        rig.submit(make_request([1], deadline_s=50.0))
        assert rig.scheduler.expire(10.0) == [early, late]

    def test_a_deadline_survives_losses_and_preemptions(self) -> None:
        rig = make_rig()
        sequence = rig.submit(make_request(range(10), deadline_s=5.0))
        rig.plan()
        rig.lose()
        rig.come_back(rig.evacuate())
        assert rig.scheduler.expire(5.0) == [sequence]

    def test_an_ended_sequence_is_not_watched(self) -> None:
        rig = make_rig()
        sequence = rig.submit(make_request(range(10), new_token_count=2, deadline_s=5.0))
        rig.run_to_end()
        assert sequence.token_ids == expected_tokens(sequence)
        assert rig.scheduler.expire(9.0) == []
