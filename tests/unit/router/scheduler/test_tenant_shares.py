"""Tenants that wait take turns by what they have had, and nobody saves up turns or pays for an idle engine."""

from itertools import count

import pytest
from model_shard import VOCABULARY_SIZE
from scheduler_rig import SchedulerRig, make_request

from headrace.router.scheduler import SchedulerLimits
from headrace.router.sequence import Sequence, SequenceState

_stems = count()


def make_rig(*, row_limit: int = 1, block_count: int = 400) -> SchedulerRig:
    return SchedulerRig(
        SchedulerLimits(block_size=4, block_count=block_count, step_token_limit=64, step_row_limit=row_limit)
    )


def submit(rig: SchedulerRig, tenant: str, prompt_count: int = 8, new_count: int = 8, *, times: int = 1) -> None:
    """Submits requests, each with a prompt that no other has and later than all before."""
    for _ in range(times):
        stem = next(_stems)
        prompt = [(stem * 7 + position) % VOCABULARY_SIZE for position in range(prompt_count)]
        request = make_request(prompt, new_count, tenant=tenant, cache_salt=str(stem))
        rig.submit(request, arrival_s=float(stem))


def joined(rig: SchedulerRig) -> list[Sequence]:
    """Runs all to the end, and returns those that join from now on in that order."""
    known, found = set(rig.started_ids), []
    while rig.sequences:
        rig.step()
        new = sorted(rig.started_ids - known)
        known.update(new)
        found += [rig.sequences.get(sequence_id) or rig.finished[sequence_id] for sequence_id in new]
    return found


def order_of(rig: SchedulerRig) -> str:
    """Returns the tenants of those that join from now on."""
    return "".join(sequence.request.tenant for sequence in joined(rig))


def test_one_tenant_is_served_in_the_order_of_arrival() -> None:
    rig = make_rig()
    submit(rig, "a", 8, 2)
    submit(rig, "a", 60, 40)
    submit(rig, "a", 4, 2, times=3)
    assert [sequence.sequence_id for sequence in joined(rig)] == [1, 2, 3, 4, 5]


def test_a_burst_does_not_delay_another_tenant() -> None:
    rig = make_rig()
    submit(rig, "a", times=12)
    rig.step()
    submit(rig, "b", times=4)
    assert order_of(rig) == "babababa" + "a" * 7


def test_turns_follow_tokens_and_not_requests() -> None:
    rig = make_rig()
    submit(rig, "a", 24, 24, times=4)  # as much as three of the other's
    submit(rig, "b", 8, 8, times=9)
    assert order_of(rig) == "a" + "bbba" * 3


def test_a_tenant_that_pauses_saves_up_nothing() -> None:
    rig = make_rig()
    submit(rig, "b")
    submit(rig, "a", times=10)
    assert order_of(rig) == "b" + "a" * 10
    submit(rig, "a", times=3)
    submit(rig, "b", times=3)
    # It has had a tenth of what the other had, and yet they take turns.
    assert order_of(rig) == "ababab"


def test_an_idle_engine_costs_nobody_a_turn() -> None:
    rig = make_rig()
    submit(rig, "a", 8, 200)
    assert order_of(rig) == "a"
    submit(rig, "b", times=3)
    submit(rig, "a", times=3)
    assert order_of(rig) == "bababa"


def test_what_the_prefix_cache_held_is_not_counted() -> None:
    rig = make_rig()
    prompt = [position % VOCABULARY_SIZE for position in range(41)]
    for index in range(4):
        rig.submit(make_request(prompt, 1, tenant="a"), arrival_s=float(index))
    submit(rig, "b", 41, 1, times=4)
    # The first of each costs the same; those of "a" that follow cost two tokens each.
    assert order_of(rig) == "ababaabb"


def test_what_was_preempted_comes_back_before_the_turn_of_others() -> None:
    rig = make_rig(row_limit=3, block_count=14)
    submit(rig, "a", 8, 30, times=2)
    for _ in range(3):
        rig.step()
    submit(rig, "b", 8, 8, times=3)
    victim_count = 0
    for _ in range(300):
        rig.step()
        waiting = [sequence for sequence in rig.sequences.values() if sequence.state is SequenceState.WAITING]
        preempted = [sequence for sequence in waiting if sequence.preemption_count]
        victim_count += len(preempted)
        assert not preempted or rig.scheduler._waiting.head in preempted
    assert victim_count, "the memory was too large for the test"
    assert not rig.sequences


@pytest.mark.parametrize("tenant_count", [2, 5])
def test_nobody_waits_for_room_while_others_slip_in_for_ever(tenant_count: int) -> None:
    """A request that needs nearly all memory, beside tenants whose small ones never stop."""
    rig = make_rig(row_limit=4, block_count=24)
    others = [f"t{index}" for index in range(tenant_count)]
    for other in others:
        submit(rig, other, 8, 8, times=4)
    rig.step()
    submit(rig, "big", 80, 8)
    large = max(rig.sequences)
    for _ in range(60):
        for other in others:
            if sum(sequence.request.tenant == other for sequence in rig.sequences.values()) < 4:
                submit(rig, other, 8, 8)
        rig.step()
        if large in rig.started_ids:
            break
    assert large in rig.started_ids
