"""Plays the router's part for one engine: admits, allocates blocks, steps, and collects what comes back."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from headrace.contract.pooling import PoolingOptions
from headrace.contract.sampling import LogprobOptions, RowStopRules, SamplingParams
from headrace.contract.step import AdmittedSequence, RowEnd, RowError, RowLogprobs, StepPlan, StepResult
from headrace.shard.engine import Engine
from headrace.shard.worker import Worker

GREEDY = SamplingParams(temperature=0.0)


@dataclass(eq=False)
class Job:
    """One sequence, as the driver knows it."""

    sequence_id: int
    prompt: tuple[int, ...]
    sampling: SamplingParams
    stopping: RowStopRules
    logprob_options: LogprobOptions
    adapter: str = ""
    grammar: str = ""
    pooling: PoolingOptions | None = None
    vector: bytes | None = None
    generated: list[int] = field(default_factory=list)
    logprobs: list[RowLogprobs] = field(default_factory=list)
    end: RowEnd | None = None
    error: RowError | None = None
    block_ids: list[int] = field(default_factory=list)
    computed_count: int = 0
    """By the plans that were sent, whether or not they were answered."""
    known_count: int = 0
    """Tokens that the shard knows by then."""

    @property
    def is_over(self) -> bool:
        return self.end is not None or self.error is not None

    @property
    def tokens(self) -> tuple[int, ...]:
        return (*self.prompt, *self.generated)


class PlanDriver:
    """A batch on an engine. Blocks come scattered, so that no table is a straight line."""

    def __init__(
        self, engine: Engine, *, chunk_token_count: int = 1 << 30, steps_in_flight: int = 1, may_draft: bool = False
    ) -> None:
        self.engine = engine
        self.may_draft = may_draft
        self.grammar = ""
        """Of everything that is submitted from now on."""
        self.drafted_count = 0
        self.accepted_count = 0
        self.chunk_token_count = chunk_token_count
        self.steps_in_flight = steps_in_flight
        self.rows: list[Job] = []
        description = engine.description
        # A stride that shares no factor with the count visits every block.
        stride = next(step for step in (7, 11, 13, 17) if description.block_count % step)
        self.free_blocks = deque(i * stride % description.block_count for i in range(description.block_count))
        self._step_ids = count(1)
        self._sequence_ids = count(100)
        self._released: list[int] = []
        self._admitted: list[tuple[Job, int]] = []

    def submit(
        self,
        prompt: Sequence[int],
        token_count: int,
        *,
        sampling: SamplingParams = GREEDY,
        logprobs: LogprobOptions | None = None,
        adapter: str = "",
        **stopping: object,
    ) -> Job:
        """Admits a prompt with the next plan; `stopping` is further fields of RowStopRules."""
        rules = RowStopRules(token_limit=len(prompt) + token_count, **stopping)  # type: ignore[arg-type]
        options = logprobs or LogprobOptions()
        job = Job(next(self._sequence_ids), tuple(prompt), sampling, rules, options, adapter, self.grammar)
        self._admit(job, computed_count=0)
        return job

    def submit_pooled(self, prompt: Sequence[int], pooling: PoolingOptions, *, owner: Job | None = None) -> Job:
        """Admits a prompt whose hidden states are wanted, after the blocks that `owner` computed of it."""
        job = self.submit(prompt, 1) if owner is None else self.submit_with_prefix(prompt, 1, owner=owner)
        job.pooling = pooling
        return job

    def submit_with_prefix(self, prompt: Sequence[int], token_count: int, *, owner: Job) -> Job:
        """Admits a prompt whose first blocks are another's, as after a hit in the prefix cache."""
        job = self.submit(prompt, token_count, adapter=owner.adapter)
        block_size = self.engine.description.block_size
        same = next((i for i, (a, b) in enumerate(zip(prompt, owner.tokens, strict=False)) if a != b), len(prompt))
        shared = min(same, owner.computed_count, len(prompt) - 1) // block_size
        job.block_ids = owner.block_ids[:shared]
        job.computed_count = shared * block_size
        self._admitted[-1] = (job, job.computed_count)
        return job

    def preempt(self, job: Job) -> None:
        """Takes a row's blocks away and lets it start again with all its tokens."""
        self.release(job)
        if not job.is_over:
            self._admit(job, computed_count=0)

    def release(self, job: Job) -> None:
        """Removes a row with the next plan."""
        self.rows.remove(job)
        self._released.append(job.sequence_id)
        self.free_blocks.extend(job.block_ids)
        job.block_ids = []

    def run(self) -> None:
        """Steps until every row is over."""
        for _ in range(100_000):
            if not self._admitted and all(job.is_over for job in self.rows):
                return
            self.step()
        raise AssertionError("the batch does not end")

    def run_ahead(self, worker: Worker) -> None:
        """Steps until every row is over, with a plan sent before the one before it is answered."""
        unanswered = deque([worker.submit(self.plan())])
        while not all(job.is_over for job in self.rows):
            unanswered.append(worker.submit(self.plan()))
            self.take(unanswered.popleft().result(timeout=60))
        for future in unanswered:
            self.take(future.result(timeout=60))

    def step(self) -> StepResult:
        """Runs one step."""
        result = self.engine.execute(self.plan())
        self.take(result)
        return result

    def plan(self, held: frozenset[int] | set[int] = frozenset()) -> StepPlan:
        """Returns the next plan, as if it was sent; `held` rows compute nothing."""
        released, self._released = tuple(self._released), []
        admitted, self._admitted = self._admitted, []
        first_admitted = len(self.rows)
        self.rows += [job for job, _ in admitted]
        chunks: dict[int, int] = {}
        growth: dict[int, list[int]] = {}
        for row, job in enumerate(self.rows):
            if job.is_over or row in held:
                continue
            chunk = min(self.chunk_token_count, job.known_count - job.computed_count)
            if chunk != 1:
                chunks[row] = chunk
            added = self._grow(job, chunk)
            if added and row < first_admitted:
                growth[row] = added
            job.computed_count += chunk
            job.known_count += job.computed_count == job.known_count
        return StepPlan(
            step_id=next(self._step_ids),
            released_sequence_ids=released,
            admitted=tuple(self._sequence(job, computed_count) for job, computed_count in admitted),
            block_rows=tuple(growth),
            block_counts=tuple(map(len, growth.values())),
            block_ids=tuple(block_id for added in growth.values() for block_id in added),
            chunk_rows=tuple(chunks),
            chunk_token_counts=tuple(chunks.values()),
            held_rows=tuple(sorted(held)),
        )

    def take(self, result: StepResult) -> None:
        """Takes in a result. Rows must not have changed since its plan."""
        assert len(result.token_counts) == len(self.rows)
        tokens = iter(result.token_ids)
        for job, token_count in zip(self.rows, result.token_counts, strict=True):
            job.generated += [next(tokens) for _ in range(token_count)]
            # Plans count one token for a step.
            extra = max(0, token_count - 1)
            job.computed_count += extra
            job.known_count += extra
            self.accepted_count += extra
        assert next(tokens, None) is None
        for row, end in zip(result.ended_rows, result.row_ends, strict=True):
            self.rows[row].end = end
        for error in result.errors:
            self.rows[error.row].error = error
        self.drafted_count += sum(result.draft_token_counts)
        for vector in result.vectors:
            self.rows[vector.row].vector = vector.values
        for logprobs in result.logprobs:
            self.rows[logprobs.row].logprobs.append(logprobs)

    def _admit(self, job: Job, *, computed_count: int) -> None:
        job.computed_count = computed_count
        job.known_count = len(job.tokens)
        self._admitted.append((job, computed_count))

    def _grow(self, job: Job, chunk: int) -> list[int]:
        block_size = self.engine.description.block_size
        ahead = self.engine.description.steps_in_flight * (1 + self.engine.description.draft_token_limit)
        spare = ahead if self.may_draft else 0
        # A row may end before the plan runs, so it never asks for more than its limit.
        wanted = -(-min(job.computed_count + chunk + spare, job.stopping.token_limit) // block_size)
        added = [self.free_blocks.popleft() for _ in range(wanted - len(job.block_ids))]
        job.block_ids += added
        return added

    def _sequence(self, job: Job, computed_count: int) -> AdmittedSequence:
        return AdmittedSequence(
            sequence_id=job.sequence_id,
            token_ids=job.tokens,
            prompt_token_count=len(job.prompt),
            computed_token_count=computed_count,
            block_ids=tuple(job.block_ids),
            sampling=job.sampling,
            stopping=job.stopping,
            logprobs=job.logprob_options,
            adapter=job.adapter,
            pooling=job.pooling,
            grammar=job.grammar,
            may_draft=self.may_draft and job.pooling is None,
        )
