"""A scheduler and a model shard, with the results on their way between them."""

from collections import deque
from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from functools import cache
from itertools import count

from model_shard import ModelShard, oracle, vector_of

from headrace.contract.generation import ValidRequest
from headrace.contract.pooling import Pooling, PoolingOptions
from headrace.contract.sampling import LogprobOptions, RowStopRules, SamplingParams, TextStopRules
from headrace.contract.step import RowEnd, StepPlan, StepResult
from headrace.router.policy import LONE_CHUNK_FACTOR
from headrace.router.scheduler import Scheduler, SchedulerLimits, SequenceUpdate
from headrace.router.sequence import Sequence, SequenceState

_cached_oracle = cache(oracle)


def make_request(
    prompt: Tokens[int],
    new_token_count: int = 8,
    *,
    ending_ids: Tokens[int] = (),
    min_new_token_count: int = 0,
    prompt_logprobs: bool = False,
    adapter: str = "",
    cache_salt: str = "",
    tenant: str = "",
    priority: int = 0,
    deadline_s: float | None = None,
    pooling: Pooling | None = None,
    may_draft: bool = True,
) -> ValidRequest:
    """A request that ends after `new_token_count` tokens unless the model happens to draw an ending one.

    One with `pooling` asks for a vector, and for none of the rest.
    """
    if pooling is not None:
        new_token_count, prompt_logprobs = 1, False
    return ValidRequest(
        request_id="request",
        model="model",
        prompt_token_ids=tuple(prompt),
        sampling=SamplingParams(),
        row_stop=RowStopRules(
            token_limit=len(prompt) + new_token_count,
            min_new_token_count=min_new_token_count,
            end_of_sequence_token_ids=tuple(ending_ids),
        ),
        text_stop=TextStopRules(),
        logprobs=LogprobOptions(prompt=prompt_logprobs),
        max_new_token_count=new_token_count,
        adapter=adapter,
        cache_salt=cache_salt,
        tenant=tenant,
        priority=priority,
        deadline_s=deadline_s,
        pooling=None if pooling is None else PoolingOptions(pooling=pooling),
        may_draft=may_draft,
    )


def expected_tokens(sequence: Sequence) -> list[int]:
    """All tokens that the sequence must have in the end, prompt included."""
    request = sequence.request
    return _cached_oracle(request.prompt_token_ids, request.adapter, request.row_stop)


@dataclass(frozen=True)
class Answer:
    """A result on its way, and what each row had computed by then."""

    result: StepResult
    computed: tuple[tuple[int, tuple[int, ...]], ...]


class SchedulerRig:
    """Drives a scheduler against a model shard, and checks every plan, every token and all blocks."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.scheduler = Scheduler(limits)
        self.sequences: dict[int, Sequence] = {}
        """Submitted and not ended."""
        self.finished: dict[int, Sequence] = {}
        self.started_ids: set[int] = set()
        self.delivered: dict[int, list[int]] = {}
        self.deadly_positions: dict[int, int] = {}
        self.is_sound = True
        """False from the first plan that was wrong: what comes after it means nothing."""
        self._ids = count(1)
        self._start_shard()

    def _start_shard(self) -> None:
        self.shard = ModelShard(
            block_size=self.limits.block_size,
            block_count=self.limits.block_count,
            row_limit=self.limits.step_row_limit,
            token_limit=self.limits.step_token_limit,
            draft_token_limit=self.limits.draft_token_limit,
            steps_in_flight=self.limits.steps_in_flight,
            deadly_positions=self.deadly_positions,
        )
        self.answers: deque[Answer] = deque()
        self.acknowledged: set[tuple[str, str, tuple[int, ...]]] = set()
        """Prefixes that may be hit: computed and answered, with their salt and adapter."""

    def submit(self, request: ValidRequest, arrival_s: float = 0.0) -> Sequence:
        sequence = Sequence(sequence_id=next(self._ids), request=request, arrival_s=arrival_s)
        self.scheduler.submit(sequence)
        self.sequences[sequence.sequence_id] = sequence
        self.delivered[sequence.sequence_id] = []
        return sequence

    def plan(self) -> StepPlan | None:
        """Plans a step and lets the shard run it; its answer waits to arrive."""
        planned = self.scheduler.plan()
        if planned is None:
            return None
        self.is_sound = False
        self._check_plan(planned.plan)
        for sequence in planned.started:
            assert sequence.sequence_id not in self.started_ids
            self.started_ids.add(sequence.sequence_id)
        result = self.shard.step(planned.plan)
        computed = tuple(
            (row.admitted.sequence_id, tuple(row.token_ids[: row.computed_count])) for row in self.shard.rows
        )
        self.answers.append(Answer(result, computed))
        assert len(self.answers) == self.scheduler.in_flight_count <= self.limits.steps_in_flight
        self.is_sound = True
        return planned.plan

    def answer(self) -> list[SequenceUpdate]:
        """Lets the oldest answer arrive."""
        answer = self.answers.popleft()
        updates = self.scheduler.apply(answer.result)
        for update in updates:
            self._take(update)
        for sequence_id, token_ids in answer.computed:
            sequence = self.sequences.get(sequence_id) or self.finished.get(sequence_id)
            if sequence is not None:
                request = sequence.request
                for end in range(self.limits.block_size, len(token_ids) + 1, self.limits.block_size):
                    self.acknowledged.add((request.cache_salt, request.adapter, token_ids[:end]))
        return updates

    def step(self) -> StepPlan | None:
        """Plans as much as may be in flight and lets one answer arrive; returns the first plan."""
        first = self.plan()
        while self.plan() is not None:
            pass
        if self.answers:
            self.answer()
        return first

    def cancel(self, sequence: Sequence) -> None:
        del self.sequences[sequence.sequence_id]
        assert self.scheduler.cancel(sequence.sequence_id) is sequence

    def lose(self) -> list[Sequence]:
        """Lets the shard die with its answers, and starts another."""
        refused = self.scheduler.lose_engine()
        self._start_shard()
        for sequence in refused:
            assert sequence.state is SequenceState.ENDED
            del self.sequences[sequence.sequence_id]
        return refused

    def evacuate(self) -> list[Sequence]:
        evacuated = self.scheduler.evacuate()
        assert {sequence.sequence_id for sequence in evacuated} == self.sequences.keys()
        assert all(sequence.state is SequenceState.WAITING for sequence in evacuated)
        self.sequences.clear()
        return evacuated

    def come_back(self, evacuated: list[Sequence]) -> None:
        for sequence in evacuated:
            self.scheduler.submit(sequence)
            self.sequences[sequence.sequence_id] = sequence

    def check(self) -> None:
        self.scheduler.check_integrity()
        for sequence in self.sequences.values():
            assert sequence.token_ids == expected_tokens(sequence)[: len(sequence.token_ids)]

    def run_to_end(self) -> None:
        """Plans and answers until nothing is left, which has to be soon."""
        for _ in range(3000):
            while self.plan() is not None:
                self.check()
            if not self.answers:
                break
            self.answer()
            self.check()
        assert not self.scheduler.has_work
        assert not self.sequences
        stats = self.scheduler.stats()
        assert (stats.running_count, stats.waiting_count, stats.waiting_token_count) == (0, 0, 0)
        assert stats.leased_block_count == 0
        assert stats.cached_block_count + stats.free_block_count == stats.total_block_count

    def _check_plan(self, plan: StepPlan) -> None:
        for admitted in plan.admitted:
            sequence = self.sequences[admitted.sequence_id]
            assert list(admitted.token_ids) == sequence.token_ids
            hit = admitted.token_ids[: admitted.computed_token_count]
            assert not hit or (sequence.request.cache_salt, sequence.request.adapter, hit) in self.acknowledged
            assert not hit or not admitted.logprobs.prompt
        if self.limits.prefill_chunk_token_limit is not None:
            stats = self.scheduler.stats()
            factor = LONE_CHUNK_FACTOR if stats.running_count + stats.waiting_count == 1 else 1
            most = factor * self.limits.prefill_chunk_token_limit
            assert all(chunk <= most for chunk in plan.chunk_token_counts)
        rows = [row for row in self.shard.rows if row.admitted.sequence_id not in plan.released_sequence_ids]
        for number, row in enumerate(rows):
            remaining_count = len(row.token_ids) - row.computed_count
            if len(row.token_ids) == row.admitted.stopping.token_limit and not self.limits.draft_token_limit:
                # With drafts a row may have ended before the scheduler can know.
                assert number in plan.held_rows, "a row computes past its limit"
            elif number in plan.held_rows:
                assert row.is_over or remaining_count > 1, "a row that could decode is held"
        self._check_preemptions(plan)

    def _check_preemptions(self, plan: StepPlan) -> None:
        """Whoever gave way comes after everybody who stayed."""
        stayed = [sequence for sequence in self.sequences.values() if sequence.state is SequenceState.RUNNING]
        for sequence_id in plan.released_sequence_ids:
            sequence = self.sequences.get(sequence_id)
            if sequence is not None and sequence.state is SequenceState.WAITING and sequence.unsettled_step_id:
                assert all(self._order(other) < self._order(sequence) for other in stayed)

    def _order(self, sequence: Sequence) -> tuple[float, int]:
        head_start_s = sequence.request.priority * self.limits.priority_head_start_s
        return sequence.arrival_s - head_start_s, sequence.sequence_id

    def _take(self, update: SequenceUpdate) -> None:
        sequence = update.sequence
        self.delivered[sequence.sequence_id].extend(update.token_ids)
        assert sequence.token_ids[sequence.request.prompt_token_count :] == self.delivered[sequence.sequence_id]
        if update.end is not None or update.error is not None:
            assert sequence.state is SequenceState.ENDED
            del self.sequences[sequence.sequence_id]
        if update.end is not None:
            self.finished[sequence.sequence_id] = sequence
            self._check_end(update)

    def _check_end(self, update: SequenceUpdate) -> None:
        sequence, request = update.sequence, update.sequence.request
        if request.pooling is None:
            assert update.vector is None
            assert sequence.token_ids == expected_tokens(sequence)
            assert update.end is not RowEnd.TOKEN_LIMIT or len(sequence.token_ids) == sequence.token_limit
        else:
            assert update.end is RowEnd.POOLED
            assert tuple(sequence.token_ids) == request.prompt_token_ids
            assert update.vector == vector_of(request.prompt_token_ids, request.adapter, request.pooling.pooling)
