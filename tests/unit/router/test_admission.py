"""Places are counted, given back once, and the hint follows the pace of the queue."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.contract.errors import QueueFull
from headrace.router.admission import FIRST_GUESS_S, LONGEST_HINT_S, Admission, AdmissionLimits, Permit


class HandClock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.time_s = 100.0

    def now(self) -> float:
        return self.time_s


def admission(clock: HandClock, *, requests: int = 2, tokens: int = 100) -> Admission:
    return Admission(AdmissionLimits(waiting_request_limit=requests, waiting_token_limit=tokens), clock)


def test_the_request_over_the_limit_is_turned_away() -> None:
    room = admission(HandClock())
    room.enter()
    room.enter()
    with pytest.raises(QueueFull, match="2 requests are waiting, the limit is 2") as caught:
        room.enter()
    assert caught.value.retry_after_s == FIRST_GUESS_S
    assert room.waiting_count == 2


def test_a_place_is_given_back_once() -> None:
    room = admission(HandClock())
    permit = room.enter()
    permit.charge(40)
    permit.release()
    permit.release()
    permit.start()
    assert (room.waiting_count, room.waiting_token_count) == (0, 0)


def test_tokens_are_limited_too() -> None:
    room = admission(HandClock())
    room.enter().charge(80)
    late = room.enter()
    with pytest.raises(QueueFull, match="80 prompt tokens are waiting, 30 more would exceed the limit of 100"):
        late.charge(30)
    late.release()
    assert (room.waiting_count, room.waiting_token_count) == (1, 80)


def test_a_prompt_over_the_token_limit_is_let_in_when_it_waits_alone() -> None:
    room = admission(HandClock())
    room.enter().charge(5000)
    assert room.waiting_token_count == 5000


def test_a_burst_turns_away_its_own_tenant_alone() -> None:
    room = admission(HandClock(), requests=12)
    burst = [room.enter(tenant="a") for _ in range(12)]
    for tenant, part in (("b", 6), ("c", 4)):
        with pytest.raises(QueueFull, match="the limit is 12"):
            room.enter(tenant="a")
        with pytest.raises(QueueFull, match=f"{part + 1} more would be too many"):
            room.enter(part + 1, tenant=tenant)
        room.enter(part, tenant=tenant)
        with pytest.raises(QueueFull):
            room.enter(tenant=tenant)
    assert room.waiting_count == 22
    for permit in burst:
        permit.release()
    room.enter(2, tenant="a")
    assert room.waiting_count == 12
    with pytest.raises(QueueFull):
        room.enter(2, tenant="b")


def test_tokens_of_a_burst_leave_room_for_other_tenants_too() -> None:
    room = admission(HandClock())
    room.enter(tenant="a").charge(90)
    other = room.enter(tenant="b")
    with pytest.raises(QueueFull, match="51 more would exceed the limit of 100"):
        other.charge(51)
    other.charge(50)
    assert room.waiting_token_count == 140


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 9), st.booleans()), max_size=80))
def test_the_room_is_bounded_whoever_comes(story: list[tuple[str, int, bool]]) -> None:
    room = admission(HandClock(), requests=24, tokens=10**9)
    permits: dict[str, list[Permit]] = {tenant: [] for tenant in "abcd"}
    for tenant, count, is_leaving in story:
        if is_leaving and permits[tenant]:
            permits[tenant].pop().release()
            continue
        try:
            permits[tenant].append(room.enter(count, tenant=tenant))
        except QueueFull:
            assert room.waiting_count + count > 24
        assert room.waiting_count <= 24 * (1 + 1 / 2 + 1 / 3 + 1 / 4)
    for permit in [permit for of in permits.values() for permit in of]:
        permit.release()
    assert (room.waiting_count, room.waiting_token_count) == (0, 0)


def test_the_hint_is_the_pace_of_starts_times_the_place_in_the_line_outside() -> None:
    clock = HandClock()
    room = admission(clock, requests=60)
    permits = [room.enter() for _ in range(60)]
    for permit in permits[:50]:
        clock.time_s += 0.25
        permit.start()
    assert room.expected_wait_s == pytest.approx(10 * 0.25, rel=0.01)
    for _ in range(50):
        room.enter()
    hints: list[float | None] = []
    for _ in range(3):
        with pytest.raises(QueueFull) as caught:
            room.enter()
        hints.append(caught.value.retry_after_s)
    assert hints == [pytest.approx(0.25 * k, rel=0.01) for k in (1, 2, 3)]


def test_a_departure_starts_the_line_outside_anew() -> None:
    clock = HandClock()
    room = admission(clock)
    room.enter()
    leaver = room.enter()
    for _ in range(5):
        with pytest.raises(QueueFull):
            room.enter()
    leaver.release()
    room.enter()
    with pytest.raises(QueueFull) as caught:
        room.enter()
    assert caught.value.retry_after_s == FIRST_GUESS_S


def test_idle_time_is_no_pace() -> None:
    clock = HandClock()
    room = admission(clock)
    room.enter().start()
    clock.time_s += 3600
    permit = room.enter()
    clock.time_s += 0.1
    permit.start()
    room.enter()
    assert room.expected_wait_s <= FIRST_GUESS_S


def test_the_hint_is_bounded() -> None:
    room = admission(HandClock(), requests=1)
    room.enter()
    for _ in range(100):
        with pytest.raises(QueueFull) as caught:
            room.enter()
    assert caught.value.retry_after_s == LONGEST_HINT_S


def test_each_completion_takes_a_place_until_it_starts() -> None:
    room = admission(HandClock(), requests=4)
    permit = room.enter(3)
    permit.charge(40)
    with pytest.raises(QueueFull, match="3 requests are waiting, the limit is 4, 2 more would be too many"):
        room.enter(2)
    permit.start()
    assert (room.waiting_count, room.waiting_token_count) == (2, 0)
    room.enter(2)
    permit.start()
    permit.start()
    permit.release()
    assert room.waiting_count == 2


def test_more_completions_than_the_limit_are_let_in_alone() -> None:
    room = admission(HandClock(), requests=2)
    permit = room.enter(5)
    assert room.waiting_count == 5
    with pytest.raises(QueueFull):
        room.enter()
    permit.start()
    permit.release()
    assert room.waiting_count == 0
