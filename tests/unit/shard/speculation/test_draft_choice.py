"""Guesses are computed where that brings more tokens per second, and nowhere else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.contract.clock import Clock
from headrace.shard.speculation.draft_choice import LEAST_GAIN, choose_counts
from headrace.shard.speculation.draft_columns import DraftColumns
from headrace.shard.speculation.step_cost import StepCost, measure_steps

FLAT = StepCost((1, 64), (1.0, 1.0))
STEEP = StepCost((1, 64), (1.0, 64.0))


def choose(
    acceptances: list[tuple[float, float]], limits: list[int], cost: StepCost, *, token_count: int, depth_s: float = 0.0
) -> list[int]:
    return choose_counts(
        np.array(acceptances).reshape(-1, 2),
        np.array(limits, dtype=np.int64),
        token_count=token_count,
        sampling_count=len(limits),
        cost=cost,
        depth_s=depth_s,
    ).tolist()


def rate(acceptances: list[tuple[float, float]], counts: list[int], cost: StepCost, token_count: int) -> float:
    expected = sum(
        first * later**depth
        for (first, later), count in zip(acceptances, counts, strict=True)
        for depth in range(count)
    )
    has_drafts = any(counts)
    seconds = cost.seconds(np.array([token_count + sum(counts)]), has_drafts=has_drafts)[0]
    return (len(counts) + expected) / float(seconds)


def test_free_guesses_are_all_taken() -> None:
    assert choose([(0.1, 0.1), (0.9, 0.9)], [3, 5], FLAT, token_count=2) == [3, 5]


def test_guesses_that_cost_as_much_as_steps_are_not() -> None:
    assert choose([(0.9, 0.9)] * 3, [8] * 3, STEEP, token_count=3) == [0, 0, 0]


def test_rows_that_are_mostly_wrong_leave_the_room_to_others() -> None:
    cost = StepCost((1, 4, 64), (1.0, 1.1, 20.0))
    assert choose([(0.05, 0.05), (0.95, 0.95)], [8, 8], cost, token_count=2) == [0, 2]


def test_the_time_of_a_drafter_counts() -> None:
    assert choose([(0.9, 0.9)], [4], FLAT, token_count=1, depth_s=0.01) == [4]
    assert choose([(0.9, 0.9)], [4], FLAT, token_count=1, depth_s=0.95) == [0]


@given(
    rows=st.lists(st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.integers(0, 6)), min_size=1, max_size=5),
    slope=st.floats(0.0, 1.0),
)
def test_no_other_prefix_of_the_likeliest_guesses_is_faster(rows: list[tuple[float, float, int]], slope: float) -> None:
    cost = StepCost((1, 64), (1.0, 1.0 + 63 * slope))
    acceptances, limits = [(first, later) for first, later, _ in rows], [limit for _, _, limit in rows]
    counts = choose(acceptances, limits, cost, token_count=len(rows))
    assert all(count <= limit for count, limit in zip(counts, limits, strict=True))
    plain = rate(acceptances, [0] * len(rows), cost, len(rows))
    chosen = rate(acceptances, counts, cost, len(rows))
    assert chosen == plain or chosen > LEAST_GAIN * plain
    for row, limit in enumerate(limits):
        for other in (counts[row] - 1, counts[row] + 1):
            if any(counts) and 0 <= other <= limit:
                changed = [*counts[:row], other, *counts[row + 1 :]]
                assert rate(acceptances, changed, cost, len(rows)) <= max(chosen, LEAST_GAIN * plain) * (1 + 1e-9)


def test_what_becomes_of_guesses_is_learned_and_forgotten() -> None:
    columns, place = DraftColumns(2), np.array([1])
    columns.fill(1, may_draft=True)
    assert columns.acceptances(place, 0.5).tolist() == [[0.5, 0.5]]
    for _ in range(30):
        columns.learn(place, np.array([4]), np.array([4]))
    assert columns.acceptances(place, 0.5).min() > 0.9
    for _ in range(30):
        columns.learn(place, np.array([1]), np.array([0]))
    first, later = columns.acceptances(place, 0.5)[0]
    assert first < 0.1
    assert later > 0.7
    for _ in range(2000):
        columns.learn(place, np.array([0]), np.array([0]))
    assert columns.acceptances(place, 0.5)[0] == pytest.approx([0.5, 0.5], abs=0.01)


class Stopwatch(Clock):
    """A clock that steps move on, with something else in the way now and then."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.count = 0

    def now(self) -> float:
        return self.now_s

    def run(self, token_count: int) -> None:
        self.count += 1
        self.now_s += 0.01 + 0.001 * token_count + (0.5 if self.count % 5 == 0 else 0.0)


def test_what_holds_a_measurement_up_does_not_count() -> None:
    watch = Stopwatch()
    cost = measure_steps(watch.run, watch, token_limit=32)
    counts = np.array([1, 3, 8, 32, 100])
    assert cost.seconds(counts, has_drafts=False) == pytest.approx(0.01 + 0.001 * counts)
    each = [cost.seconds_of(count, has_drafts=False) for count in counts.tolist()]
    assert each == pytest.approx(cost.seconds(counts, has_drafts=False).tolist())


def test_observed_steps_correct_what_was_measured() -> None:
    """Steps turn out twice as slow, those with drafts three times, and every tenth is held up."""
    cost = StepCost((1, 64), (1.0, 2.0))
    for number in range(600):
        held_up = 50.0 if number % 10 == 9 else 0.0
        has_drafts = number % 2 == 1
        cost.observe(1, (3.0 if has_drafts else 2.0) + held_up, has_drafts=has_drafts)
    one = np.array([1])
    assert cost.seconds(one, has_drafts=False)[0] == pytest.approx(2.0, rel=0.1)
    assert cost.seconds(one, has_drafts=True)[0] == pytest.approx(3.0, rel=0.1)
