"""Whatever happens to it, a sequence gets exactly the tokens that it would have got alone."""

import os
from collections import deque
from dataclasses import dataclass, replace
from functools import cache
from itertools import count

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.contract.errors import InvalidRequest
from headrace.contract.generation import ValidRequest
from headrace.contract.sampling import LogprobOptions, RowStopRules, SamplingParams, TextStopRules
from headrace.contract.step import RowEnd, StepPlan, StepResult
from headrace.router.scheduler import Scheduler, SchedulerLimits, SequenceUpdate
from headrace.router.sequence import Sequence, SequenceState

from .model_shard import VOCABULARY_SIZE, ModelShard, ShardDied, oracle

SETTINGS = settings(
    max_examples=120, stateful_step_count=60, deadline=None, derandomize="CI" in os.environ, print_blob=True
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
    lambda prompt, new_count, ending_ids, minimum, **fields: ValidRequest(
        request_id="",
        model="model",
        prompt_token_ids=prompt,
        sampling=SamplingParams(),
        row_stop=RowStopRules(
            token_limit=len(prompt) + new_count,
            min_new_token_count=min(minimum, new_count),
            end_of_sequence_token_ids=tuple(sorted(ending_ids)),
        ),
        text_stop=TextStopRules(),
        max_new_token_count=new_count,
        **fields,
    ),
    prompt=prompts,
    new_count=st.integers(1, 20),
    ending_ids=st.sets(st.integers(0, VOCABULARY_SIZE - 1), max_size=6),
    minimum=st.integers(0, 3),
    logprobs=st.sampled_from([LogprobOptions()] * 5 + [LogprobOptions(prompt=True)]),
    adapter=st.sampled_from(["", "", "", "adapter"]),
    cache_salt=st.sampled_from(["", "", "", "tenant"]),
    priority=st.integers(-2, 2),
)

limits_of_any_size = st.builds(
    SchedulerLimits,
    block_size=st.integers(1, 4),
    block_count=st.integers(8, 24),
    step_token_limit=st.integers(1, 30),
    step_row_limit=st.integers(1, 8),
    steps_in_flight=st.integers(1, 3),
    prefill_chunk_token_limit=st.none() | st.integers(1, 12),
    priority_head_start_s=st.sampled_from([0.0, 3.0]),
)


cached_oracle = cache(oracle)


def expected_tokens(sequence: Sequence) -> list[int]:
    request = sequence.request
    return cached_oracle(request.prompt_token_ids, request.adapter, request.row_stop)


@dataclass(frozen=True)
class Answer:
    """A result on its way, and what the shard had computed by then."""

    result: StepResult
    computed: tuple[tuple[int, tuple[int, ...]], ...]


class Rig:
    """A scheduler, a model shard, and the results between them."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.scheduler = Scheduler(limits)
        self.sequences: dict[int, Sequence] = {}
        """Submitted and not ended."""
        self.delivered: dict[int, list[int]] = {}
        self.finished: dict[int, Sequence] = {}
        self.ids = count(1)
        self.deadly_counts: dict[int, int] = {}
        self.is_sound = True
        """False from the first plan that was wrong: what comes after it means nothing."""
        self.start_shard()

    def start_shard(self) -> None:
        self.shard = ModelShard(
            block_size=self.limits.block_size,
            block_count=self.limits.block_count,
            row_limit=self.limits.step_row_limit,
            token_limit=self.limits.step_token_limit,
            deadly_counts=self.deadly_counts,
        )
        self.answers: deque[Answer] = deque()
        self.acknowledged: set[tuple[str, str, tuple[int, ...]]] = set()
        """Prefixes that may be hit: computed and answered, under their salt and adapter."""

    def submit(self, request: ValidRequest, arrival_s: float) -> Sequence | None:
        sequence = Sequence(sequence_id=next(self.ids), request=request, arrival_s=arrival_s)
        slot_count = self.limits.block_size * self.limits.block_count
        if request.row_stop.token_limit - 1 > slot_count:
            with pytest.raises(InvalidRequest, match=f"{slot_count}"):
                self.scheduler.submit(sequence)
            return None
        self.scheduler.submit(sequence)
        self.sequences[sequence.sequence_id] = sequence
        self.delivered[sequence.sequence_id] = []
        return sequence

    def plan(self) -> bool:
        """Plans a step and lets the shard run it; False if there was nothing to plan."""
        planned = self.scheduler.plan()
        if planned is None:
            return False
        self.is_sound = False
        self.check_plan(planned.plan)
        for sequence in planned.started:
            assert sequence.admission_count == 1
        result = self.shard.step(planned.plan)
        self.is_sound = True
        computed = tuple(
            (row.admitted.sequence_id, tuple(row.token_ids[: row.computed_count])) for row in self.shard.rows
        )
        self.answers.append(Answer(result, computed))
        return True

    def check_plan(self, plan: StepPlan) -> None:
        for admitted in plan.admitted:
            sequence = self.sequences[admitted.sequence_id]
            assert list(admitted.token_ids) == sequence.token_ids
            hit = admitted.token_ids[: admitted.computed_token_count]
            assert not hit or (sequence.request.cache_salt, sequence.request.adapter, hit) in self.acknowledged
            assert not hit or not admitted.logprobs.prompt
        stays = [row for row in self.shard.rows if row.admitted.sequence_id not in plan.released_sequence_ids]
        for number in plan.held_rows:
            row = stays[number]
            assert row.is_over or len(row.token_ids) - row.computed_count > 1, "a row that could decode is held"

    def answer(self) -> None:
        """Lets the oldest result arrive."""
        answer = self.answers.popleft()
        for update in self.scheduler.apply(answer.result):
            self.take(update)
        for sequence_id, token_ids in answer.computed:
            sequence = self.sequences.get(sequence_id) or self.finished.get(sequence_id)
            if sequence is not None:
                request = sequence.request
                for end in range(self.limits.block_size, len(token_ids) + 1, self.limits.block_size):
                    self.acknowledged.add((request.cache_salt, request.adapter, token_ids[:end]))

    def take(self, update: SequenceUpdate) -> None:
        sequence = update.sequence
        self.delivered[sequence.sequence_id].extend(update.token_ids)
        assert sequence.token_ids[sequence.request.prompt_token_count :] == self.delivered[sequence.sequence_id]
        if update.end is not None or update.error is not None:
            assert sequence.state is SequenceState.ENDED
            del self.sequences[sequence.sequence_id]
        if update.end is not None:
            self.finished[sequence.sequence_id] = sequence
            assert sequence.token_ids == expected_tokens(sequence)
            has_reached_limit = len(sequence.token_ids) == sequence.token_limit
            assert update.end is not RowEnd.TOKEN_LIMIT or has_reached_limit

    def lose(self) -> list[Sequence]:
        refused = self.scheduler.lose_engine()
        self.start_shard()
        for sequence in refused:
            assert sequence.state is SequenceState.ENDED
            del self.sequences[sequence.sequence_id]
        return refused

    def check(self) -> None:
        self.scheduler.check_integrity()
        for sequence in self.sequences.values():
            expected = expected_tokens(sequence)
            assert sequence.token_ids == expected[: len(sequence.token_ids)]

    def run_to_end(self) -> None:
        """Plans and answers until nothing is left, which has to be soon."""
        for _ in range(3000):
            while self.plan():
                self.check()
            if not self.answers:
                break
            self.answer()
            self.check()
        assert not self.scheduler.has_work
        assert not self.sequences
        stats = self.scheduler.stats()
        assert stats.leased_block_count == 0
        assert (stats.running_count, stats.waiting_count, stats.waiting_token_count) == (0, 0, 0)
        assert stats.computed_token_count >= self.shard.computed_tokens


class SchedulerMachine(RuleBasedStateMachine):
    """Everything that can happen to a scheduler, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.outside: list[Sequence] = []

    @initialize(limits=limits_of_any_size)
    def start(self, limits: SchedulerLimits) -> None:
        self.rig = Rig(limits)

    @rule(batch=st.lists(st.tuples(requests, st.none() | st.integers(1, 30)), min_size=1, max_size=4))
    def submit(self, batch: list[tuple[ValidRequest, int | None]]) -> None:
        for request, patience_s in batch:
            deadline_s = None if patience_s is None else self.now_s + patience_s
            self.rig.submit(replace(request, deadline_s=deadline_s), self.now_s)

    @rule(times=st.integers(1, 6))
    def step(self, times: int) -> None:
        for _ in range(times):
            while self.rig.plan():
                pass
            if self.rig.answers:
                self.rig.answer()

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
        sequence_id = data.draw(st.sampled_from(sorted(self.rig.sequences)))
        sequence = self.rig.sequences.pop(sequence_id)
        assert self.rig.scheduler.cancel(sequence_id) is sequence
        assert self.rig.scheduler.cancel(sequence_id) is None
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

    @rule(misfortune=st.sampled_from(["lose_engine", "flush", "evacuate"]))
    def suffer(self, misfortune: str) -> None:
        """One rule for what is rare, so that between two of them something can grow."""
        scheduler = self.rig.scheduler
        if misfortune == "lose_engine":
            assert all(sequence.loss_count == 2 for sequence in self.rig.lose())
            assert scheduler.stats().cached_block_count == 0
        elif misfortune == "flush":
            cached_count = scheduler.stats().cached_block_count
            assert scheduler.flush_prefix_cache() == cached_count
            assert scheduler.stats().cached_block_count == 0
        else:
            evacuated = scheduler.evacuate()
            assert {sequence.sequence_id for sequence in evacuated} == self.rig.sequences.keys()
            assert scheduler.stats().leased_block_count == 0
            self.outside += evacuated
            self.rig.sequences.clear()

    @precondition(lambda self: self.outside)
    @rule()
    def come_back(self) -> None:
        for sequence in self.outside:
            assert sequence.state is SequenceState.WAITING
            self.rig.scheduler.submit(sequence)
            self.rig.sequences[sequence.sequence_id] = sequence
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
    poison=st.tuples(requests, st.integers(0, 40)),
    poison_index=st.integers(0, 8),
)
@settings(SETTINGS, max_examples=150)
def test_a_poisonous_request_kills_two_shards_and_no_other_request(
    limits: SchedulerLimits,
    arrivals: list[tuple[int, ValidRequest]],
    poison: tuple[ValidRequest, int],
    poison_index: int,
) -> None:
    rig = Rig(limits)
    arrivals = [*arrivals[:poison_index], (0, poison[0]), *arrivals[poison_index:]]
    poison_id = 0
    death_count = 0
    refused: list[Sequence] = []
    for index, (pause, request) in enumerate(arrivals):
        sequence = rig.submit(request, arrival_s=float(index))
        if index == min(poison_index, len(arrivals) - 1):
            assume(sequence is not None and poison[1] < len(expected_tokens(sequence)) - 1)
            assert sequence is not None
            poison_id = sequence.sequence_id
            rig.deadly_counts[poison_id] = poison[1]
        death_count += run_steps(rig, pause, refused)
    for _ in range(1000):
        death_count += run_steps(rig, 1, refused)
        rig.check()
        if not rig.scheduler.has_work and not rig.answers:
            break
    assert death_count == 2
    assert [sequence.sequence_id for sequence in refused] == [poison_id]
    assert not rig.sequences


def run_steps(rig: Rig, step_count: int, refused: list[Sequence]) -> int:
    """Runs steps, starting a new shard when one dies; returns how many died."""
    death_count = 0
    for _ in range(step_count):
        try:
            while rig.plan():
                pass
            if rig.answers:
                rig.answer()
        except ShardDied:
            refused.extend(rig.lose())
            death_count += 1
    return death_count


@given(limits=limits_of_any_size, batch=st.lists(requests, min_size=1, max_size=6))
@settings(SETTINGS)
def test_the_same_calls_give_the_same_plans(limits: SchedulerLimits, batch: list[ValidRequest]) -> None:
    def plans() -> list[StepPlan]:
        rig = Rig(limits)
        made: list[StepPlan] = []
        check = rig.check_plan
        rig.check_plan = lambda plan: (made.append(plan), check(plan))[1]  # type: ignore[method-assign]
        for index, request in enumerate(batch):
            rig.submit(request, arrival_s=float(index // 2))
        rig.run_to_end()
        return made

    assert plans() == plans()
