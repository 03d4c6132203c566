"""Whatever happens to a request, each of its completions gets the tokens that it would have got alone."""

import asyncio
import math
import os
from collections.abc import Awaitable
from dataclasses import dataclass, field

import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from headrace.contract.adapter import AdapterOrder, LoadedAdapter
from headrace.contract.clock import MonotonicClock
from headrace.contract.engine import EngineDescription
from headrace.contract.errors import ShardLost
from headrace.contract.generation import GenerationDelta, GenerationFinished, ValidRequest
from headrace.contract.sampling import LogprobOptions, RowStopRules, SamplingParams, TextStopRules, completion_seed
from headrace.contract.step import StepPlan, StepResult
from headrace.router.active_request import ActiveRequest
from headrace.router.policy import SchedulerLimits
from headrace.router.reporting import report_nothing
from headrace.router.scheduler import Scheduler
from headrace.router.sequence import Sequence
from headrace.router.step_loop import StepLoop
from headrace.router.step_profile import StepProfiler
from headrace.router.tokenizer import Tokenizer
from headrace.shard.engines.fake import FakeEngine, FakeOptions
from headrace.shard.engines.fake_oracle import FakeModel, drawn_share, expected_completion

VOCABULARY_SIZE = 60
ENDING_ID = 2
MODEL = FakeModel(vocabulary_size=VOCABULARY_SIZE, first_drawn_token_id=3, end_of_sequence_one_in=12)
PROMPT_TOKEN_LIMIT, NEW_TOKEN_LIMIT = 24, 12


def letter_tokenizer() -> Tokenizer:
    """A character for each token."""
    backend = tokenizers.Tokenizer(models.WordLevel({chr(33 + n): n for n in range(VOCABULARY_SIZE)}, unk_token="!"))
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend)


TOKENIZER = letter_tokenizer()


@dataclass(frozen=True)
class Job:
    """One request, and after which step it is cancelled, if at all."""

    request: ValidRequest
    cancelled_at: int | None


def make_job(
    *, stem: int, length: int, new_token_count: int, counts: tuple[int, int], seed: int, cancelled_at: int | None
) -> Job:
    prompt = tuple(3 + (stem + position) % 50 for position in range(length))
    request = ValidRequest(
        request_id=f"request {stem}",
        model="model",
        prompt_token_ids=prompt,
        sampling=SamplingParams(seed=seed),
        row_stop=RowStopRules(token_limit=length + new_token_count, end_of_sequence_token_ids=(ENDING_ID,)),
        text_stop=TextStopRules(),
        logprobs=LogprobOptions(),
        max_new_token_count=new_token_count,
        completion_count=min(counts),
        best_of=max(counts),
    )
    return Job(request, cancelled_at)


jobs = st.builds(
    make_job,
    stem=st.integers(0, 2),
    length=st.integers(1, PROMPT_TOKEN_LIMIT),
    new_token_count=st.integers(1, NEW_TOKEN_LIMIT),
    counts=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 2**64 - 1),
    cancelled_at=st.none() | st.none() | st.integers(0, 20),
)

limits_of_any_size = st.builds(
    SchedulerLimits,
    block_size=st.integers(1, 5),
    # Never less than one sequence needs.
    block_count=st.integers(PROMPT_TOKEN_LIMIT + NEW_TOKEN_LIMIT, 60),
    step_token_limit=st.integers(1, 40),
    step_row_limit=st.integers(1, 8),
    steps_in_flight=st.integers(1, 2),
    prefill_chunk_token_limit=st.none() | st.integers(1, 12),
)


@dataclass
class MortalEngine:
    """A StepEngine over a fake engine in this task, which dies when it has run so many steps."""

    limits: SchedulerLimits
    last_step: int | None
    cancel_due: "Cancellations"
    scheduler: Scheduler
    step_count: int = 0
    lost: asyncio.Future[ShardLost] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def __post_init__(self) -> None:
        self._engine = FakeEngine(
            FakeOptions(
                vocabulary_size=VOCABULARY_SIZE,
                block_size=self.limits.block_size,
                block_count=self.limits.block_count,
                first_drawn_token_id=MODEL.first_drawn_token_id,
                end_of_sequence_one_in=MODEL.end_of_sequence_one_in,
            )
        )

    @property
    def description(self) -> EngineDescription:
        return self._engine.description

    async def load_adapter(self, _order: AdapterOrder) -> LoadedAdapter:
        raise NotImplementedError  # nobody asks for any

    async def unload_adapter(self, digest: str) -> None:
        raise NotImplementedError

    def step(self, plan: StepPlan) -> Awaitable[StepResult]:
        self.scheduler.check_integrity()
        self.step_count += 1
        self.cancel_due.note_step()
        future: asyncio.Future[StepResult] = asyncio.get_running_loop().create_future()
        if self.step_count == self.last_step:
            self.die()
        if self.lost.done():
            future.set_exception(self.lost.result())
        else:
            asyncio.get_running_loop().call_soon(future.set_result, self._engine.execute(plan))
        return future

    def die(self) -> None:
        if not self.lost.done():
            self.lost.set_result(ShardLost("died"))

    async def wait_lost(self) -> ShardLost:
        return await asyncio.shield(self.lost)

    async def aclose(self) -> None:
        self.die()


class Cancellations:
    """Cancels requests when their step has come, counted over all engines."""

    def __init__(self, due: dict[ActiveRequest, int | None]) -> None:
        self.due = due
        self.loop: StepLoop | None = None
        self.gone: set[ActiveRequest] = set()
        self._step_count = 0

    def note_step(self) -> None:
        assert self.loop is not None
        for active, step in self.due.items():
            if step is not None and step <= self._step_count and active not in self.gone:
                self.gone.add(active)
                self.loop.cancel(active)
        self._step_count += 1


async def run_to_end(batch: list[Job], limits: SchedulerLimits, first_life: int) -> list[ActiveRequest | None]:
    """Runs all requests, over two engines if the first dies; returns those that were not cancelled."""
    ids = iter(range(1, 1000))
    actives = [
        ActiveRequest(
            job.request,
            [
                Sequence(sequence_id=next(ids), request=job.request.of_completion(index), arrival_s=0.0)
                for index in range(job.request.best_of)
            ],
            TOKENIZER,
            None,
        )
        for job in batch
    ]
    cancellations = Cancellations(dict(zip(actives, (job.cancelled_at for job in batch), strict=True)))
    waiting = actives
    for last_step in (first_life, None):
        scheduler = Scheduler(limits)
        engine = MortalEngine(limits, last_step, cancellations, scheduler)
        loop = StepLoop(
            scheduler=scheduler,
            engine=engine,
            clock=MonotonicClock(),
            step_timeout_s=60.0,
            report=report_nothing,
            profiler=StepProfiler(),
        )
        cancellations.loop = loop
        for active in waiting:
            loop.submit(active)
        runner = asyncio.ensure_future(loop.run())
        for _ in range(20_000):
            if runner.done() or not (loop.request_count or scheduler.has_work):
                break
            await asyncio.sleep(0)
        else:
            raise AssertionError("the requests do not come to their ends")
        if not runner.done():
            stats = scheduler.stats()
            assert stats.leased_block_count == 0
            scheduler.check_integrity()
        engine.die()
        await runner
        waiting = loop.abandon()
    assert waiting == []
    return [None if active in cancellations.gone else active for active in actives]


async def read(active: ActiveRequest) -> tuple[dict[int, tuple[int, ...]], GenerationFinished]:
    events = [event async for event in active.stream.events()]
    assert isinstance(events[-1], GenerationFinished)
    return {event.index: event.token_ids for event in events if isinstance(event, GenerationDelta)}, events[-1]


@given(
    batch=st.lists(jobs, min_size=1, max_size=5),
    limits=limits_of_any_size,
    first_life=st.integers(1, 30),
)
@settings(max_examples=150, deadline=None, derandomize="CI" in os.environ, print_blob=True)
def test_every_completion_is_what_it_would_be_alone(batch: list[Job], limits: SchedulerLimits, first_life: int) -> None:
    async def check() -> None:
        for active in await run_to_end(batch, limits, first_life):
            if active is None:
                continue
            request = active.request
            found, finished = await read(active)
            alone = [expected_alone(request, index) for index in range(request.best_of)]
            means = [sum(math.log(drawn_share(token_id)) for token_id in tokens) / len(tokens) for tokens in alone]
            best = list(range(request.best_of))
            if request.is_ranked:
                best = sorted(best, key=lambda index: -means[index])[: request.completion_count]
            assert found == {place: alone[index] for place, index in enumerate(best)}
            assert [end.seed for end in finished.ends] == [completion_seed(request.sampling.seed, i) for i in best]
            assert [end.mean_logprob for end in finished.ends] == [
                means[i] if request.is_ranked else None for i in best
            ]
            assert finished.usage.generated_token_count == sum(map(len, alone))

    asyncio.run(check())


def expected_alone(request: ValidRequest, index: int) -> tuple[int, ...]:
    sampling = SamplingParams(seed=completion_seed(request.sampling.seed, index))
    tokens, _ = expected_completion(
        request.prompt_token_ids,
        request.max_new_token_count,
        model=MODEL,
        sampling=sampling,
        stopping=request.row_stop,
    )
    return tokens
