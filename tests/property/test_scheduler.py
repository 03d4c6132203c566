"""Whatever happens to it, a sequence gets exactly the tokens that it would have got alone."""

import os
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from model_shard import VOCABULARY_SIZE, ShardDied
from scheduler_rig import SchedulerRig, expected_tokens, make_request

from headrace.contract.errors import InvalidRequest
from headrace.contract.generation import ValidRequest
from headrace.contract.pooling import Pooling
from headrace.contract.step import StepPlan
from headrace.router.scheduler import SchedulerLimits
from headrace.router.sequence import Sequence, SequenceState

SETTINGS = settings(
    max_examples=200, stateful_step_count=60, deadline=None, derandomize="CI" in os.environ, print_blob=True
)

# Few stems, so that prompts share prefixes of every length.
STEMS = tuple(tuple((start + position) % VOCABULARY_SIZE for position in range(24)) for start in (0, 0, 30))

prompts = st.builds(
    lambda stem, length, tail: (*stem[:length], *tail),
    st.sampled_from(STEMS),
    st.integers(0, 24),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
).filter(bool)

requests = st.builds(
    make_request,
    prompts,
    st.integers(1, 20),
    ending_ids=st.sets(st.integers(0, VOCABULARY_SIZE - 1), max_size=6).map(sorted),
    min_new_token_count=st.integers(0, 3),
    prompt_logprobs=st.sampled_from([False, False, False, False, True]),
    adapter=st.sampled_from(["", "", "", "adapter"]),
    cache_salt=st.sampled_from(["one", "one", "one", "two"]),
    tenant=st.sampled_from(["", "", "shop", "bank"]),
    priority=st.integers(-2, 2),
    pooling=st.sampled_from([None, None, None, Pooling.MEAN, Pooling.LAST]),
    may_draft=st.sampled_from([True, True, False]),
)

limits_of_any_size = st.builds(
    SchedulerLimits,
    block_size=st.integers(1, 4),
    block_count=st.integers(8, 24),
    step_token_limit=st.integers(1, 30),
    step_row_limit=st.integers(1, 8),
    steps_in_flight=st.integers(1, 3),
    prefill_chunk_token_limit=st.none() | st.integers(1, 12),
    draft_token_limit=st.sampled_from([0, 0, 1, 3, 7]),
    priority_head_start_s=st.sampled_from([0.0, 3.0]),
)


def submit_if_it_fits(rig: SchedulerRig, request: ValidRequest, arrival_s: float) -> Sequence | None:
    slot_count = rig.limits.block_size * rig.limits.block_count
    if request.row_stop.token_limit - 1 <= slot_count:
        return rig.submit(request, arrival_s)
    with pytest.raises(InvalidRequest, match=f"{slot_count}"):
        rig.submit(request, arrival_s)
    return None


class SchedulerMachine(RuleBasedStateMachine):
    """Everything that can happen to a scheduler, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.outside: list[Sequence] = []
        """Evacuated and not back yet."""

    @initialize(limits=limits_of_any_size)
    def start(self, limits: SchedulerLimits) -> None:
        self.rig = SchedulerRig(limits)

    @rule(batch=st.lists(st.tuples(requests, st.none() | st.integers(1, 30)), min_size=1, max_size=4))
    def submit(self, batch: list[tuple[ValidRequest, int | None]]) -> None:
        for request, patience_s in batch:
            deadline_s = None if patience_s is None else self.now_s + patience_s
            submit_if_it_fits(self.rig, replace(request, deadline_s=deadline_s), self.now_s)

    @rule(times=st.integers(1, 6))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.rig.step()

    @rule()
    def plan(self) -> None:
        self.rig.plan()

    @precondition(lambda self: self.rig.answers)
    @rule()
    def answer(self) -> None:
        self.rig.answer()

    @precondition(lambda self: self.rig.sequences)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        sequence = self.rig.sequences[data.draw(st.sampled_from(sorted(self.rig.sequences)))]
        self.rig.cancel(sequence)
        assert self.rig.scheduler.cancel(sequence.sequence_id) is None
        assert sequence.state is SequenceState.ENDED

    @rule(seconds=st.integers(1, 10))
    def let_time_pass(self, seconds: int) -> None:
        self.now_s += seconds
        for sequence in self.rig.scheduler.expire(self.now_s):
            assert self.rig.sequences.pop(sequence.sequence_id) is sequence
        for sequence in self.rig.sequences.values():
            assert sequence.request.deadline_s is None or sequence.request.deadline_s > self.now_s

    @precondition(lambda self: self.rig.shard.rows)
    @rule(data=st.data())
    def fail_row(self, data: st.DataObject) -> None:
        ids = [row.admitted.sequence_id for row in self.rig.shard.rows]
        self.rig.shard.failing_ids.add(data.draw(st.sampled_from(ids)))

    @rule(misfortune=st.sampled_from(["lose", "flush", "evacuate", "evacuate and come back"]))
    def suffer(self, misfortune: str) -> None:
        """One rule for what is rare, so that between two of them something can grow."""
        scheduler = self.rig.scheduler
        while self.rig.plan() is not None:
            pass
        if misfortune == "lose":
            assert all(sequence.loss_count == 2 for sequence in self.rig.lose())
            assert scheduler.stats().cached_block_count == 0
        elif misfortune == "flush":
            cached_count = scheduler.stats().cached_block_count
            assert scheduler.flush_prefix_cache() == cached_count
            assert scheduler.stats().cached_block_count == 0
        else:
            self.outside += self.rig.evacuate()
            assert scheduler.stats().leased_block_count == 0
            if misfortune == "evacuate and come back":
                self.come_back()

    @precondition(lambda self: self.outside)
    @rule()
    def come_back(self) -> None:
        self.rig.come_back(self.outside)
        self.outside = []

    @invariant()
    def is_consistent(self) -> None:
        if hasattr(self, "rig"):
            self.rig.check()

    def teardown(self) -> None:
        if hasattr(self, "rig") and self.rig.is_sound:
            self.come_back()
            self.rig.run_to_end()


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = SETTINGS


@given(
    limits=limits_of_any_size,
    arrivals=st.lists(st.tuples(st.integers(0, 4), requests), min_size=1, max_size=8),
    poison=requests,
    position=st.integers(0, 40),
    index=st.integers(0, 7),
    notices=st.lists(st.booleans(), min_size=2, max_size=2),
)
@settings(SETTINGS, max_examples=200)
def test_a_poisonous_request_kills_two_shards_and_no_other_request(
    *,
    limits: SchedulerLimits,
    arrivals: list[tuple[int, ValidRequest]],
    poison: ValidRequest,
    position: int,
    index: int,
    notices: list[bool],
) -> None:
    """Whatever runs beside it, wherever it strikes, and whether or not the last answers still get out."""
    assume(poison.row_stop.token_limit <= limits.slot_count)
    rig = SchedulerRig(limits)
    graveyard = Graveyard(rig, notices)
    arrivals.insert(index, (0, poison))
    for arrival_s, (pause, request) in enumerate(arrivals):
        sequence = submit_if_it_fits(rig, request, float(arrival_s))
        if request is poison:
            assert sequence is not None
            assume(position < len(expected_tokens(sequence)) - 1)
            rig.deadly_positions[sequence.sequence_id] = position
        for _ in range(pause):
            graveyard.step()
    for _ in range(1000):
        if not rig.scheduler.has_work:
            break
        graveyard.step()
        rig.check()
    assert graveyard.death_count == 2
    assert [sequence.request for sequence in graveyard.refused] == [poison]
    assert not rig.sequences


class Graveyard:
    """Runs steps, and replaces the shards that die."""

    def __init__(self, rig: SchedulerRig, notices: list[bool]) -> None:
        self.rig = rig
        self.notices = notices
        """For each death, whether answers from before it are still received."""
        self.death_count = 0
        self.refused: list[Sequence] = []

    def step(self) -> None:
        try:
            self.rig.step()
        except ShardDied:
            self.death_count += 1
            assert self.death_count <= len(self.notices), "the poison goes on killing"
            while self.notices[self.death_count - 1] and self.rig.answers:
                self.rig.answer()
            self.refused += self.rig.lose()


@given(limits=limits_of_any_size, batch=st.lists(requests, min_size=1, max_size=6))
@settings(SETTINGS, max_examples=60)
def test_the_same_calls_give_the_same_plans(limits: SchedulerLimits, batch: list[ValidRequest]) -> None:
    def plans() -> list[StepPlan | None]:
        rig = SchedulerRig(limits)
        for index, request in enumerate(batch):
            submit_if_it_fits(rig, request, float(index // 2))
        made: list[StepPlan | None] = []
        while rig.scheduler.has_work:
            made.append(rig.step())
        return made

    assert plans() == plans()
