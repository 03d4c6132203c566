"""Several completions of one prompt, over fake engines: each is what it would be alone, and the prompt is shared."""

import asyncio
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from headrace.contract.errors import DeadlineExceeded, QueueFull, RowFailed
from headrace.contract.generation import (
    FinishReason,
    GenerationDelta,
    GenerationEvent,
    GenerationFinished,
    GenerationRequest,
    GenerationStarted,
    OutputOptions,
)
from headrace.contract.sampling import SamplingOptions, SamplingParams, StoppingOptions, completion_seed
from headrace.contract.step import StepPlan
from headrace.shard.engines.fake import FakeEngine, FakeOptions
from headrace.shard.engines.fake_oracle import drawn_share, expected_tokens

Start = Callable[..., Any]
Request = Callable[..., GenerationRequest]
SEED = 7
PROMPT = tuple(range(100, 150))
"""Three full blocks of 16 and two tokens."""


def seeded(seed: int = SEED) -> SamplingOptions:
    return SamplingOptions(temperature=1.0, seed=seed)


def alone(index: int, count: int, seed: int = SEED) -> tuple[int, ...]:
    """What completion `index` has to be."""
    sampling = SamplingParams(temperature=1.0, seed=completion_seed(seed, index))
    return expected_tokens(PROMPT, count, sampling=sampling)


def tokens_by_index(events: Iterable[GenerationEvent]) -> dict[int, tuple[int, ...]]:
    found: dict[int, tuple[int, ...]] = {}
    for event in events:
        if isinstance(event, GenerationDelta):
            found[event.index] = found.get(event.index, ()) + event.token_ids
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until something is true; the test's timeout bounds it."""
    while not condition():  # noqa: ASYNC110  # the scheduler is pure: nobody tells when it changed
        await asyncio.sleep(0.001)


async def all_is_free(bench: Any) -> None:
    """Waits until no sequence is left and every block is free or cached."""
    await until(lambda: bench.replicas.statuses()[0].stats.leased_block_count == 0)
    stats = bench.replicas.statuses()[0].stats
    assert (stats.running_count, stats.waiting_count) == (0, 0)
    assert bench.pipeline.admission.waiting_count == 0
    assert bench.pipeline.desk.request_count == 0
    bench.check_integrity()


async def test_each_completion_is_what_a_request_for_it_alone_would_get(start: Start, request_of: Request) -> None:
    async with start() as bench:
        answer = await bench.ask(request_of(PROMPT, 40, sampling=seeded(), completion_count=5))
        assert tokens_by_index(answer.events) == {index: alone(index, 40) for index in range(5)}
        ends = answer.finished.ends
        assert [end.index for end in ends] == [0, 1, 2, 3, 4]
        assert [end.seed for end in ends] == [completion_seed(SEED, index) for index in range(5)]
        assert answer.started.seed == SEED
        for end in ends:
            again = await bench.ask(request_of(PROMPT, 40, sampling=seeded(end.seed)))
            assert again.token_ids == tokens_by_index(answer.events)[end.index]
            assert again.finished.ends[0].mean_logprob is None
        await all_is_free(bench)


async def test_the_prompt_is_computed_once(start: Start, request_of: Request) -> None:
    prompt = tuple(range(1000, 2000))
    async with start(engine=FakeOptions(step_time_s=0.001)) as bench:
        answer = await bench.ask(request_of(prompt, 10, sampling=seeded(), completion_count=8))
        await all_is_free(bench)
        stats = bench.replicas.statuses()[0].stats
        rest = len(prompt) % 16
        # The last token of each completion is drawn and never computed.
        assert stats.computed_token_count == len(prompt) + 7 * rest + 8 * 9
        usage = answer.finished.usage
        assert (usage.prompt_token_count, usage.cached_token_count) == (len(prompt), 0)
        assert usage.generated_token_count == 80


async def test_completions_without_a_block_to_share_start_together(start: Start, request_of: Request) -> None:
    async with start() as bench:
        await bench.ask(request_of((1, 2, 3), 5, completion_count=4))
        cached = await bench.ask(request_of(PROMPT, 5, sampling=seeded()))
        plans = bench.connector.engines[0].plans
        assert len(plans[0].admitted) == 4
        again = await bench.ask(request_of(PROMPT, 5, sampling=seeded(), completion_count=3))
        assert [len(plan.admitted) for plan in plans if len(plan.admitted) > 1] == [4, 3]
        assert (cached.started.cached_token_count, again.started.cached_token_count) == (0, 48)


async def test_greedy_completions_are_equal(start: Start, request_of: Request) -> None:
    async with start() as bench:
        answer = await bench.ask(request_of(PROMPT, 12, completion_count=3))
        assert set(tokens_by_index(answer.events).values()) == {expected_tokens(PROMPT, 12)}


async def test_each_completion_ends_by_a_rule_of_its_own(start: Start, request_of: Request) -> None:
    async with start() as bench:
        stop_token_id = alone(1, 30)[4]
        stopping = StoppingOptions(max_new_token_count=30, stop_token_ids=(stop_token_id,))
        answer = await bench.ask(request_of(PROMPT, sampling=seeded(), stopping=stopping, completion_count=3))
        reasons = [(end.reason, end.generated_token_count) for end in answer.finished.ends]
        assert reasons[1] == (FinishReason.STOP_TOKEN, 5)
        assert reasons[0] == reasons[2] == (FinishReason.LENGTH, 30)
        assert answer.finished.usage.generated_token_count == 65
        text = "".join(delta.text for delta in answer.deltas if delta.index == 2)
        stop = text[len(text) // 2 :][:6]
        stopping = StoppingOptions(max_new_token_count=30, stop_sequences=(stop,))
        cut = await bench.ask(request_of(PROMPT, sampling=seeded(), stopping=stopping, completion_count=3))
        assert cut.finished.ends[2].stop_sequence == stop
        assert "".join(delta.text for delta in cut.deltas if delta.index == 2) == text[: text.index(stop)]
        assert tokens_by_index(cut.events)[0] == alone(0, 30)
        await all_is_free(bench)


async def test_preemption_does_not_show(start: Start, request_of: Request) -> None:
    async with start(engine=FakeOptions(block_count=24)) as bench:
        answer = await bench.ask(request_of(PROMPT, 100, sampling=seeded(), completion_count=8))
        assert tokens_by_index(answer.events) == {index: alone(index, 100) for index in range(8)}
        assert bench.replicas.statuses()[0].stats.preemption_count > 0
        await all_is_free(bench)


async def test_more_completions_than_rows_take_turns(start: Start, request_of: Request) -> None:
    async with start(step_row_limit=2) as bench:
        answer = await bench.ask(request_of(PROMPT, 20, sampling=seeded(), completion_count=7))
        assert tokens_by_index(answer.events) == {index: alone(index, 20) for index in range(7)}
        await all_is_free(bench)


@pytest.mark.parametrize("step_count", [0, 2, 4, 12])
async def test_a_lost_engine_takes_no_completion_with_it(start: Start, request_of: Request, step_count: int) -> None:
    """Lost while only the first runs, and while all do."""
    async with start(engine=FakeOptions(step_time_s=0.002), prefill_chunk_token_limit=20) as bench:
        request = request_of(PROMPT, 40, sampling=seeded(), completion_count=5)
        task = asyncio.ensure_future(bench.ask(request))
        await until(lambda: bench.replicas.statuses()[0].stats.step_count > step_count)
        bench.connector.engines[0].die()
        answer = await task
        assert tokens_by_index(answer.events) == {index: alone(index, 40) for index in range(5)}
        assert [type(event) for event in answer.events].count(GenerationStarted) == 1
        assert bench.replicas.statuses()[0].restart_count == 1
        await all_is_free(bench)


async def test_a_poisonous_request_is_refused_with_all_its_completions(start: Start, request_of: Request) -> None:
    def bite(plan: StepPlan) -> None:
        if any(39999 in sequence.token_ids for sequence in plan.admitted):
            loop.call_soon_threadsafe(bench.connector.engines[-1].die)
            raise RuntimeError("a crash")

    loop = asyncio.get_running_loop()
    async with start(make=lambda: FakeEngine(FakeOptions(step_time_s=0.001), on_step=bite)) as bench:
        good = asyncio.ensure_future(bench.ask(request_of(PROMPT, 40, sampling=seeded(), completion_count=3)))
        bad = asyncio.ensure_future(bench.ask(request_of((39999, 1), 40, completion_count=4)))
        (error,) = await asyncio.gather(bad, return_exceptions=True)
        assert getattr(error, "reason", error) == "REQUEST_REFUSED"
        assert tokens_by_index((await good).events) == {index: alone(index, 40) for index in range(3)}
        assert bench.replicas.statuses()[0].restart_count == 2
        await all_is_free(bench)


async def test_the_failure_of_one_completion_fails_the_request_alone(start: Start, request_of: Request) -> None:
    bad_token_id = alone(2, 30)[10]
    async with start(engine=FakeOptions(error_token_id=bad_token_id)) as bench:
        good, bad = await asyncio.gather(
            bench.ask(request_of((5, 6, 7), 30)),
            bench.ask(request_of(PROMPT, 30, sampling=seeded(), completion_count=4)),
            return_exceptions=True,
        )
        assert good.token_ids == expected_tokens((5, 6, 7), 30)
        assert isinstance(bad, RowFailed)
        await all_is_free(bench)


async def test_cancelling_the_call_ends_every_completion(start: Start, request_of: Request) -> None:
    async with start(engine=FakeOptions(step_time_s=0.002)) as bench:
        events = bench.pipeline.generate(request_of(PROMPT, 3000, sampling=seeded(), completion_count=6))
        await anext(events)
        await until(lambda: bench.replicas.statuses()[0].stats.running_count == 6)
        await events.aclose()
        await all_is_free(bench)


@pytest.mark.parametrize("rows", [6, 2])
async def test_the_deadline_and_abort_reach_every_completion(start: Start, request_of: Request, rows: int) -> None:
    """Those that run, and with two rows those that wait."""
    async with start(engine=FakeOptions(step_time_s=0.002), step_row_limit=rows) as bench:
        many = request_of(PROMPT, 3000, sampling=seeded(), completion_count=6, request_id="mine")
        task = asyncio.ensure_future(bench.ask(many))
        await until(lambda: bench.replicas.statuses()[0].stats.running_count == rows)
        assert bench.pipeline.desk.abort(["mine"]) == ["mine"]
        ends = (await task).finished.ends
        assert [end.reason for end in ends] == [FinishReason.CANCELLED] * 6
        for index, token_ids in tokens_by_index((await task).events).items():
            assert token_ids == alone(index, ends[index].generated_token_count)
        await all_is_free(bench)
        deadline_s = asyncio.get_running_loop().time() + 0.1
        with pytest.raises(DeadlineExceeded):
            await bench.ask(request_of(PROMPT, 3000, completion_count=6, deadline_s=deadline_s))
        await all_is_free(bench)


async def test_a_reader_who_stops_reading_holds_each_completion_once(start: Start, request_of: Request) -> None:
    async with start() as bench:
        slow = bench.pipeline.generate(request_of(PROMPT, 100, sampling=seeded(), completion_count=3))
        await anext(slow)
        await until(lambda: bench.replicas.statuses()[0].stats.generated_token_count == 300)
        await until(lambda: bench.replicas.statuses()[0].stats.running_count == 0)
        rest = [event async for event in slow]
        assert len(rest) == 4
        assert isinstance(rest[-1], GenerationFinished)
        assert tokens_by_index(rest) == {index: alone(index, 100) for index in range(3)}


async def test_every_completion_counts_against_the_queue(start: Start, request_of: Request) -> None:
    options = FakeOptions(step_time_s=0.005)
    async with start(engine=options, step_row_limit=1, waiting_request_limit=4) as bench:
        running = asyncio.ensure_future(bench.ask(request_of((1, 2), 40)))
        await until(lambda: bench.replicas.statuses()[0].stats.running_count == 1)
        waiting = asyncio.ensure_future(bench.ask(request_of(PROMPT, 5, sampling=seeded(), completion_count=3)))
        await until(lambda: bench.pipeline.admission.waiting_count == 3)
        with pytest.raises(QueueFull):
            await bench.ask(request_of(PROMPT, 5, completion_count=2))
        await asyncio.gather(running, waiting)
        await all_is_free(bench)


async def test_best_of_returns_the_likeliest(start: Start, request_of: Request) -> None:
    """Seeds and greedy decoding are welcome, and the tokens of those left out are counted."""
    async with start() as bench:
        request = request_of(PROMPT, 20, sampling=seeded(), completion_count=2, best_of=6)
        answer = await bench.ask(request)
        assert [event.index for event in answer.deltas] == [0, 1]
        ends = answer.finished.ends
        assert answer.finished.usage.generated_token_count == 120
        means = [sum(math.log(drawn_share(token_id)) for token_id in alone(index, 20)) / 20 for index in range(6)]
        best = sorted(range(6), key=lambda index: -means[index])[:2]
        assert best != [0, 1]
        assert [end.mean_logprob for end in ends] == [pytest.approx(means[index]) for index in best]
        assert [end.seed for end in ends] == [completion_seed(SEED, index) for index in best]
        assert tokens_by_index(answer.events) == {place: alone(index, 20) for place, index in enumerate(best)}
        assert all(not delta.logprobs for delta in answer.deltas)
        greedy = await bench.ask(request_of(PROMPT, 20, best_of=2))
        assert greedy.token_ids == expected_tokens(PROMPT, 20)
        await all_is_free(bench)


async def test_an_aborted_best_of_returns_what_there_is(start: Start, request_of: Request) -> None:
    async with start(engine=FakeOptions(step_time_s=0.002), step_row_limit=2) as bench:
        request = request_of(PROMPT, 3000, sampling=seeded(), best_of=4, request_id="mine")
        task = asyncio.ensure_future(bench.ask(request))
        await until(lambda: bench.replicas.statuses()[0].stats.step_count > 8)
        assert bench.pipeline.desk.abort(["mine"]) == ["mine"]
        (end,) = (await task).finished.ends
        assert end.reason is FinishReason.CANCELLED
        assert end.mean_logprob is not None
        await all_is_free(bench)


async def test_a_best_of_that_is_lost_for_good_sent_no_token(start: Start, request_of: Request) -> None:
    async with start(engine=FakeOptions(step_time_s=0.002), replay_timeout_s=0.05) as bench:
        task = asyncio.ensure_future(bench.ask(request_of(PROMPT, 3000, sampling=seeded(), best_of=2)))
        await until(lambda: bench.replicas.statuses()[0].stats.step_count > 8)
        bench.connector.may_connect.clear()
        bench.connector.engines[0].die()
        (error,) = await asyncio.gather(task, return_exceptions=True)
        assert getattr(error, "reason", error) == "SHARD_LOST"
        assert not error.tokens_sent


@pytest.mark.parametrize("prompt", [(5, 6, 7), PROMPT], ids=["less than a block", "several blocks"])
async def test_the_prompts_logprobs_come_once_and_before_all_completions(
    start: Start, request_of: Request, prompt: tuple[int, ...]
) -> None:
    async with start() as bench:
        await bench.ask(request_of(prompt, 5))
        output = OutputOptions(prompt_logprobs=True)
        answer = await bench.ask(request_of(prompt, 10, sampling=seeded(), completion_count=4, output=output))
        assert [entry.token_id for entry in answer.started.prompt_logprobs] == list(prompt)
        sampling = [SamplingParams(temperature=1.0, seed=completion_seed(SEED, index)) for index in range(4)]
        wanted = {index: expected_tokens(prompt, 10, sampling=sampling[index]) for index in range(4)}
        assert tokens_by_index(answer.events) == wanted
        admitted = [sequence for plan in bench.connector.engines[0].plans for sequence in plan.admitted]
        assert [sequence.logprobs.prompt for sequence in admitted] == [False, True, False, False, False]
        await all_is_free(bench)
