"""What a request meets between admission and its last event, over fake engines."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import pytest

from headrace.contract.errors import (
    DeadlineExceeded,
    Draining,
    DuplicateRequest,
    FeatureUnsupported,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    QueueFull,
    RowFailed,
)
from headrace.contract.generation import (
    FinishReason,
    GenerationDelta,
    GenerationStarted,
    OutputOptions,
    TextPrompt,
)
from headrace.contract.sampling import SamplingOptions, SamplingParams, StoppingOptions
from headrace.contract.step import StepPlan
from headrace.shard.engines.fake import FakeEngine, FakeOptions
from headrace.shard.engines.fake_oracle import expected_tokens

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Start = Callable[..., AbstractAsyncContextManager[Any]]
Request = Callable[..., Any]


def prompt(number: int, length: int = 40) -> tuple[int, ...]:
    return tuple(100 + (number * 7919 + index * 31) % 40000 for index in range(length))


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until something is true; the test's timeout bounds it."""
    while not condition():  # noqa: ASYNC110  # the scheduler is pure: nobody tells when it changed
        await asyncio.sleep(0.001)


async def test_tokens_are_the_oracles_and_the_deltas_add_up(start: Start, request_of: Request) -> None:
    async with start() as bench:
        answer = await bench.ask(request_of(prompt(1), 20))
        assert answer.token_ids == expected_tokens(prompt(1), 20)
        assert answer.text == bench.pipeline.model.tokenizer.decode(answer.token_ids, include_special_tokens=False)
        assert answer.started.prompt_token_count == 40
        (end,) = answer.finished.ends
        assert (end.reason, end.generated_token_count) == (FinishReason.LENGTH, 20)
        assert answer.finished.usage.generated_token_count == 20


async def test_sixty_four_streams_share_steps(start: Start, request_of: Request) -> None:
    async with start() as bench:
        answers = await asyncio.gather(*(bench.ask(request_of(prompt(n), 30)) for n in range(64)))
        for number, answer in enumerate(answers):
            assert answer.token_ids == expected_tokens(prompt(number), 30)
        stats = bench.replicas.statuses()[0].stats
        assert stats.row_count / stats.step_count > 20
        assert stats.step_count < 200
        await until(lambda: bench.replicas.statuses()[0].stats.running_count == 0)
        bench.check_integrity()
        stats = bench.replicas.statuses()[0].stats
        assert stats.leased_block_count == 0


async def test_a_shared_prefix_is_computed_once(start: Start, request_of: Request) -> None:
    async with start() as bench:
        shared = prompt(1, 512)
        first = await bench.ask(request_of((*shared, 5000), 4))
        before = bench.replicas.statuses()[0].stats.computed_token_count
        second = await bench.ask(request_of((*shared, 6000, 6001), 4))
        computed = bench.replicas.statuses()[0].stats.computed_token_count - before
        assert (first.started.cached_token_count, second.started.cached_token_count) == (0, 512)
        assert computed == 2 + 3  # its own suffix, and each generated token but the last
        assert second.token_ids == expected_tokens((*shared, 6000, 6001), 4)
        salted = await bench.ask(request_of((*shared, 6000, 6001), 4, cache_salt="other"))
        assert salted.started.cached_token_count == 0
        assert salted.token_ids == second.token_ids


async def test_generated_tokens_are_cached_too(start: Start, request_of: Request) -> None:
    async with start() as bench:
        first = await bench.ask(request_of(prompt(1, 48), 40))
        conversation = (*prompt(1, 48), *first.token_ids, 777)
        second = await bench.ask(request_of(conversation, 4))
        assert second.started.cached_token_count == 80


async def test_closing_the_iterator_frees_the_blocks(start: Start, request_of: Request) -> None:
    async with start() as bench:
        events = bench.pipeline.generate(request_of(prompt(1), 3000))
        async for event in events:
            if isinstance(event, GenerationDelta):
                break
        assert bench.replicas.statuses()[0].stats.leased_block_count > 0
        await events.aclose()
        await until(lambda: bench.replicas.statuses()[0].stats.leased_block_count == 0)
        assert bench.pipeline.desk.request_count == 0
        bench.check_integrity()


async def test_cancelled_in_the_queue_and_in_prefill(start: Start, request_of: Request) -> None:
    engine = FakeOptions(step_time_s=0.02)
    async with start(engine=engine, step_row_limit=1, prefill_chunk_token_limit=16) as bench:
        prefilling = asyncio.ensure_future(bench.ask(request_of(prompt(1, 2000), 4)))
        await until(lambda: bench.replicas.statuses()[0].stats.running_count == 1)
        queued = asyncio.ensure_future(bench.ask(request_of(prompt(2), 4)))
        await until(lambda: bench.pipeline.admission.waiting_count == 1)
        queued.cancel()
        prefilling.cancel()
        await asyncio.wait([queued, prefilling])
        steps = bench.replicas.statuses()[0].stats.step_count
        await until(lambda: bench.replicas.statuses()[0].stats.leased_block_count == 0)
        assert bench.replicas.statuses()[0].stats.step_count <= steps + 1
        assert bench.pipeline.admission.waiting_count == 0
        admitted = [
            sequence for engine in bench.connector.engines for plan in engine.plans for sequence in plan.admitted
        ]
        assert len(admitted) == 1
        bench.check_integrity()


async def test_a_deadline_in_the_queue_never_reaches_the_shard(start: Start, request_of: Request) -> None:
    async with start(engine=FakeOptions(step_time_s=0.01), step_row_limit=1) as bench:
        running = asyncio.ensure_future(bench.ask(request_of(prompt(1), 3000)))
        await until(lambda: bench.replicas.statuses()[0].stats.running_count == 1)
        deadline_s = asyncio.get_running_loop().time() + 0.05
        with pytest.raises(DeadlineExceeded):
            await bench.ask(request_of(prompt(2), 4, deadline_s=deadline_s))
        running.cancel()
        await asyncio.wait([running])
        admitted = [sequence for plan in bench.connector.engines[0].plans for sequence in plan.admitted]
        assert len(admitted) == 1


async def test_a_deadline_in_decode_frees_the_blocks(start: Start, request_of: Request) -> None:
    async with start(engine=FakeOptions(step_time_s=0.005)) as bench:
        deadline_s = asyncio.get_running_loop().time() + 0.2
        with pytest.raises(DeadlineExceeded):
            await bench.ask(request_of(prompt(1), 3000, deadline_s=deadline_s))
        await until(lambda: bench.replicas.statuses()[0].stats.leased_block_count == 0)
        bench.check_integrity()


async def test_a_full_queue_turns_away_and_recovers(start: Start, request_of: Request) -> None:
    async with start(engine=FakeOptions(step_time_s=0.01), step_row_limit=1, waiting_request_limit=2) as bench:
        running = asyncio.ensure_future(bench.ask(request_of(prompt(1), 20)))
        await until(lambda: bench.replicas.statuses()[0].stats.running_count == 1)
        waiting = [asyncio.ensure_future(bench.ask(request_of(prompt(n), 5))) for n in (2, 3)]
        await until(lambda: bench.pipeline.admission.waiting_count == 2)
        with pytest.raises(QueueFull) as caught:
            await bench.ask(request_of(prompt(4), 5))
        assert caught.value.retry_after_s is not None
        await asyncio.gather(running, *waiting)
        answer = await bench.ask(request_of(prompt(4), 5))
        assert answer.token_ids == expected_tokens(prompt(4), 5)


async def test_a_stop_sequence_across_tokens_ends_the_text_before_it(start: Start, request_of: Request) -> None:
    async with start() as bench:
        whole = await bench.ask(request_of(prompt(1), 40))
        middle = len(whole.text) // 2
        stop = whole.text[middle : middle + 6]
        cut = whole.text.index(stop)
        stopping = StoppingOptions(max_new_token_count=40, stop_sequences=(stop,))
        answer = await bench.ask(request_of(prompt(1), stopping=stopping))
        (end,) = answer.finished.ends
        assert (end.reason, end.stop_sequence) == (FinishReason.STOP_SEQUENCE, stop)
        assert answer.text == whole.text[:cut]
        assert answer.token_ids == whole.token_ids[: end.generated_token_count]
        kept = StoppingOptions(max_new_token_count=40, stop_sequences=(stop,), include_stop_sequence=True)
        assert (await bench.ask(request_of(prompt(1), stopping=kept))).text == whole.text[: cut + 6]
        await until(lambda: bench.replicas.statuses()[0].stats.leased_block_count == 0)


async def test_no_stop_sequence_is_looked_for_before_the_least_count(start: Start, request_of: Request) -> None:
    async with start() as bench:
        whole = await bench.ask(request_of(prompt(1), 40))
        early, late = whole.text[2:8], whole.text[-8:-2]

        async def ask(least_count: int, *stops: str) -> Any:
            stopping = StoppingOptions(max_new_token_count=40, min_new_token_count=least_count, stop_sequences=stops)
            return await bench.ask(request_of(prompt(1), stopping=stopping))

        stopped = await ask(0, early)
        assert stopped.finished.ends[0].stop_sequence == early
        (end,) = (await ask(20, early)).finished.ends
        assert (end.reason, end.generated_token_count) == (FinishReason.LENGTH, 40)
        both = await ask(20, early, late)
        assert both.finished.ends[0].stop_sequence == late
        assert both.text == whole.text[: whole.text.index(late)]


async def test_ending_tokens_and_limits_are_told_apart(start: Start, request_of: Request) -> None:
    async with start(engine=FakeOptions(context_token_count=64)) as bench:
        tokens = expected_tokens(prompt(1), 30)
        stopping = StoppingOptions(max_new_token_count=30, stop_token_ids=(tokens[5],))
        (end,) = (await bench.ask(request_of(prompt(1), stopping=stopping))).finished.ends
        assert (end.reason, end.stop_token_id) == (FinishReason.STOP_TOKEN, tokens[5])
        assert end.generated_token_count == tokens.index(tokens[5]) + 1
        (end,) = (await bench.ask(request_of(prompt(1), stopping=StoppingOptions()))).finished.ends
        assert (end.reason, end.generated_token_count) == (FinishReason.CONTEXT_LIMIT, 24)


async def test_the_time_limit_keeps_what_was_generated(start: Start, request_of: Request) -> None:
    async with start(engine=FakeOptions(step_time_s=0.005)) as bench:
        stopping = StoppingOptions(max_new_token_count=3000, time_limit_s=0.2)
        answer = await bench.ask(request_of(prompt(1), stopping=stopping))
        (end,) = answer.finished.ends
        assert end.reason is FinishReason.TIME_LIMIT
        assert 0 < end.generated_token_count < 3000
        assert answer.token_ids == expected_tokens(prompt(1), end.generated_token_count)
        await until(lambda: bench.replicas.statuses()[0].stats.leased_block_count == 0)


async def test_preemption_is_invisible(start: Start, request_of: Request) -> None:
    async with start(engine=FakeOptions(block_count=24), step_row_limit=8) as bench:
        answers = await asyncio.gather(*(bench.ask(request_of(prompt(n), 100)) for n in range(8)))
        for number, answer in enumerate(answers):
            assert answer.token_ids == expected_tokens(prompt(number), 100)
            assert [type(event) for event in answer.events].count(GenerationStarted) == 1
        assert bench.replicas.statuses()[0].stats.preemption_count > 0
        bench.check_integrity()


async def test_a_lost_engine_is_replaced_and_every_stream_goes_on(start: Start, request_of: Request) -> None:
    async with start(engine=FakeOptions(step_time_s=0.002)) as bench:
        sampling = SamplingOptions(temperature=1.0, seed=7)
        tasks = [
            asyncio.ensure_future(bench.ask(request_of(prompt(n), 200, **({"sampling": sampling} if n % 2 else {}))))
            for n in range(16)
        ]
        for loss in range(1, 4):
            # Suspects of a loss come back one by one; when all are here, and a few steps on, none is left.
            await until(lambda: bench.replicas.statuses()[0].stats.running_count == 16)
            steps = bench.replicas.statuses()[0].stats.step_count
            await until(lambda steps=steps: bench.replicas.statuses()[0].stats.step_count > steps + 5)
            bench.connector.engines[-1].die()
            await until(lambda loss=loss: bench.replicas.statuses()[0].restart_count == loss)
        answers = await asyncio.gather(*tasks)
        for number, answer in enumerate(answers):
            drawn = SamplingParams(temperature=1.0, seed=7) if number % 2 else None
            assert answer.token_ids == expected_tokens(prompt(number), 200, sampling=drawn)
        assert bench.replicas.statuses()[0].restart_count == 3
        bench.check_integrity()


async def test_a_poisonous_request_is_refused_and_the_others_do_not_notice(start: Start, request_of: Request) -> None:
    poison = 39999

    def make() -> FakeEngine:
        return FakeEngine(FakeOptions(step_time_s=0.001), on_step=bite)

    def bite(plan: StepPlan) -> None:
        if any(poison in sequence.token_ids for sequence in plan.admitted):
            loop.call_soon_threadsafe(bench.connector.engines[-1].die)
            raise RuntimeError("a crash")

    loop = asyncio.get_running_loop()
    async with start(make=make) as bench:
        tasks = [asyncio.ensure_future(bench.ask(request_of(prompt(n), 60))) for n in range(8)]
        bad = asyncio.ensure_future(bench.ask(request_of((poison, 1, 2), 60)))
        for number, answer in enumerate(await asyncio.gather(*tasks)):
            assert answer.token_ids == expected_tokens(prompt(number), 60)
        error = (await asyncio.gather(bad, return_exceptions=True))[0]
        assert getattr(error, "reason", error) == "REQUEST_REFUSED"
        assert bench.replicas.statuses()[0].restart_count == 2


async def test_requests_move_to_another_replica(start: Start, request_of: Request) -> None:
    async with start(engine=FakeOptions(step_time_s=0.002), replica_count=2) as bench:
        await until(lambda: len(bench.connector.engines) == 2)
        tasks = [asyncio.ensure_future(bench.ask(request_of(prompt(n), 60))) for n in range(16)]
        await until(lambda: all(status.stats.running_count > 3 for status in bench.replicas.statuses()))
        bench.connector.may_connect.clear()
        bench.connector.engines[0].die()
        for number, answer in enumerate(await asyncio.gather(*tasks)):
            assert answer.token_ids == expected_tokens(prompt(number), 60)


async def test_a_removed_replica_hands_its_requests_over(start: Start, request_of: Request) -> None:
    async with start(engine=FakeOptions(step_time_s=0.002), replica_count=2) as bench:
        await until(lambda: len(bench.connector.engines) == 2)
        tasks = [asyncio.ensure_future(bench.ask(request_of(prompt(n), 60))) for n in range(8)]
        await until(lambda: all(status.stats.running_count > 1 for status in bench.replicas.statuses()))
        await bench.replicas.remove("replica-0")
        for number, answer in enumerate(await asyncio.gather(*tasks)):
            assert answer.token_ids == expected_tokens(prompt(number), 60)
        assert [status.id for status in bench.replicas.statuses()] == ["replica-1"]


async def test_nobody_comes_back_in_time(start: Start, request_of: Request) -> None:
    async with start(engine=FakeOptions(step_time_s=0.002), replay_timeout_s=0.05) as bench:
        task = asyncio.ensure_future(bench.ask(request_of(prompt(1), 3000)))
        await until(lambda: bench.replicas.statuses()[0].stats.step_count > 5)
        bench.connector.may_connect.clear()
        bench.connector.engines[0].die()
        (error,) = await asyncio.gather(task, return_exceptions=True)
        assert getattr(error, "reason", error) == "SHARD_LOST"
        assert error.tokens_sent
        with pytest.raises(NotReady) as caught:
            await bench.ask(request_of(prompt(2)))
        assert caught.value.retry_after_s is not None


async def test_before_the_first_engine_nothing_can_be_asked(start: Start, request_of: Request) -> None:
    async with start(is_connected=False) as bench:
        with pytest.raises(NotReady):
            await bench.ask(request_of(prompt(1)))
        assert bench.pipeline.desk.request_count == 0


async def test_a_slow_reader_gets_fewer_bigger_deltas_and_stops_nobody(start: Start, request_of: Request) -> None:
    async with start() as bench:
        slow: AsyncIterator[Any] = bench.pipeline.generate(request_of(prompt(1), 500))
        await anext(slow)
        quick = await bench.ask(request_of(prompt(2), 100))
        assert quick.token_ids == expected_tokens(prompt(2), 100)
        await until(lambda: bench.replicas.statuses()[0].stats.running_count == 0)
        rest = [event async for event in slow]
        deltas = [event for event in rest if isinstance(event, GenerationDelta)]
        assert len(deltas) == 1
        assert deltas[0].token_ids == expected_tokens(prompt(1), 500)


async def test_a_failed_row_fails_alone(start: Start, request_of: Request) -> None:
    async with start(engine=FakeOptions(error_token_id=39999)) as bench:
        good, bad = await asyncio.gather(
            bench.ask(request_of(prompt(1), 30)), bench.ask(request_of((39999, 5), 30)), return_exceptions=True
        )
        assert good.token_ids == expected_tokens(prompt(1), 30)
        assert isinstance(bad, RowFailed)
        await until(lambda: bench.replicas.statuses()[0].stats.leased_block_count == 0)


async def test_abort_ends_a_request_by_its_id(start: Start, request_of: Request) -> None:
    async with start(engine=FakeOptions(step_time_s=0.002)) as bench:
        task = asyncio.ensure_future(bench.ask(request_of(prompt(1), 3000, request_id="mine")))
        await until(lambda: bench.replicas.statuses()[0].stats.step_count > 3)
        with pytest.raises(DuplicateRequest):
            await bench.ask(request_of(prompt(1), request_id="mine"))
        assert bench.pipeline.desk.abort(["mine", "unknown"]) == ["mine"]
        assert bench.pipeline.desk.abort(["mine"]) == []
        (end,) = (await task).finished.ends
        assert end.reason is FinishReason.CANCELLED
        assert (await task).token_ids == expected_tokens(prompt(1), end.generated_token_count)
        await until(lambda: bench.replicas.statuses()[0].stats.leased_block_count == 0)


async def test_draining_refuses_new_requests_and_serves_the_old(start: Start, request_of: Request) -> None:
    async with start(engine=FakeOptions(step_time_s=0.002)) as bench:
        task = asyncio.ensure_future(bench.ask(request_of(prompt(1), 60)))
        await until(lambda: bench.replicas.statuses()[0].stats.step_count > 3)
        bench.pipeline.desk.refuse_new(Draining("going away", retry_after_s=1.0))
        with pytest.raises(Draining):
            await bench.ask(request_of(prompt(2)))
        await bench.pipeline.desk.wait_idle()
        assert (await task).token_ids == expected_tokens(prompt(1), 60)


async def test_a_drained_replica_takes_nothing_new(start: Start, request_of: Request) -> None:
    async with start() as bench:
        bench.replicas.drain("replica-0")
        with pytest.raises(NotReady):
            await bench.ask(request_of(prompt(1)))


async def test_a_probe_goes_past_queue_and_cache(start: Start) -> None:
    async with start(waiting_request_limit=0) as bench:
        token_id = await bench.pipeline.probe("replica-0", asyncio.get_running_loop().time() + 5)
        assert (token_id,) == expected_tokens((0,), 1)
        assert bench.replicas.statuses()[0].stats.cached_token_count == 0


async def test_seeds_are_reported_and_reproduce(start: Start, request_of: Request) -> None:
    async with start() as bench:
        free = await bench.ask(request_of(prompt(1), 20, sampling=SamplingOptions(temperature=1.0)))
        again = SamplingOptions(temperature=1.0, seed=free.started.seed)
        assert (await bench.ask(request_of(prompt(1), 20, sampling=again))).token_ids == free.token_ids


async def test_text_is_tokenized_as_tokenize_says(start: Start, request_of: Request) -> None:
    async with start() as bench:
        tokenized = await bench.pipeline.tokenize(TextPrompt("How do rivers flow?"))
        answer = await bench.ask(request_of((), 5, prompt=TextPrompt("How do rivers flow?")))
        assert answer.token_ids == expected_tokens(tokenized.token_ids, 5)
        spans = [tokenized.text.encode()[start:end].decode() for start, end in tokenized.spans]
        assert "".join(spans) == "How do rivers flow?"


async def test_refused_before_anything_runs(start: Start, request_of: Request) -> None:
    async with start() as bench:
        with pytest.raises(InvalidRequest, match=r"sampling\.top_p"):
            await bench.ask(request_of(prompt(1), sampling=SamplingOptions(top_p=2.0)))
        with pytest.raises(FeatureUnsupported, match=r"sampling\.min_p"):
            await bench.ask(request_of(prompt(1), sampling=SamplingOptions(min_p=0.5)))
        with pytest.raises(ModelNotFound):
            await bench.ask(request_of(prompt(1), model="other"))
        with pytest.raises(InvalidRequest, match="token_ids"):
            await bench.ask(request_of((49152,)))
        assert bench.pipeline.desk.request_count == 0
        assert bench.replicas.statuses()[0].stats.step_count == 0


async def test_logprobs_come_with_texts_and_offsets(start: Start, request_of: Request) -> None:
    async with start() as bench:
        request = request_of(prompt(1), 6, output=OutputOptions(token_logprobs=True, top_logprob_count=2))
        answer = await bench.ask(request)
        logprobs = [entry for delta in answer.deltas for entry in delta.logprobs]
        assert tuple(entry.token_id for entry in logprobs) == answer.token_ids
        assert all(len(entry.top) == 2 and entry.rank == 1 for entry in logprobs)
        offsets = [entry.byte_offset for entry in logprobs]
        assert offsets == sorted(offsets)
        assert offsets[0] == 0
