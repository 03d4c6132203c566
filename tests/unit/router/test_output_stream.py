"""The mailbox coalesces, keeps order and never grows beyond the completion."""

import asyncio

import pytest

from headrace.contract.errors import ReaderStalled
from headrace.contract.generation import (
    CompletionEnd,
    FinishReason,
    GenerationDelta,
    GenerationEvent,
    GenerationFinished,
    GenerationStarted,
    Timings,
    Usage,
)
from headrace.router.output_stream import OutputStream

STARTED = GenerationStarted(request_id="r", model="m", prompt_token_count=1, cached_token_count=0, seed=0)
FINISHED = GenerationFinished(
    ends=(CompletionEnd(reason=FinishReason.LENGTH, generated_token_count=2, seed=0),),
    usage=Usage(prompt_token_count=1, cached_token_count=0, generated_token_count=2),
    timings=Timings(queued_s=0, prefill_s=0, decode_s=0),
)


async def read(stream: OutputStream) -> list[GenerationEvent]:
    return [event async for event in stream.events()]


async def test_what_piles_up_becomes_one_delta() -> None:
    stream = OutputStream()
    stream.put_started(STARTED)
    for token_id in range(1000):
        stream.put_tokens("ab", (token_id,))
    stream.finish(FINISHED)
    delta = GenerationDelta(text="ab" * 1000, token_ids=tuple(range(1000)))
    assert await read(stream) == [STARTED, delta, FINISHED]


async def test_a_quick_reader_gets_every_token_on_its_own() -> None:
    stream = OutputStream()
    stream.put_started(STARTED)
    seen: list[GenerationEvent] = []

    async def consume() -> None:
        seen.extend([event async for event in stream.events()])

    reader = asyncio.ensure_future(consume())
    for token_id in range(3):
        stream.put_tokens("x", (token_id,))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    stream.finish(FINISHED)
    await reader
    assert seen == [STARTED, *(GenerationDelta(text="x", token_ids=(token_id,)) for token_id in range(3)), FINISHED]


async def test_tokens_without_text_are_told_at_once() -> None:
    stream = OutputStream()
    stream.put_started(STARTED)
    stream.put_tokens("", (7,))
    stream.finish(FINISHED)
    assert await read(stream) == [STARTED, GenerationDelta(text="", token_ids=(7,)), FINISHED]


async def test_nothing_comes_before_the_start() -> None:
    stream = OutputStream()
    stream.put_tokens("x", (1,))
    reader = asyncio.ensure_future(read(stream))
    await asyncio.sleep(0)
    stream.put_started(STARTED)
    stream.finish(FINISHED)
    assert await reader == [STARTED, GenerationDelta(text="x", token_ids=(1,)), FINISHED]


async def test_an_error_comes_after_what_was_put_before_it() -> None:
    stream = OutputStream()
    stream.put_started(STARTED)
    stream.put_tokens("x", (1,))
    stream.fail(ReaderStalled("too slow"))
    events = stream.events()
    assert await anext(events) == STARTED
    assert await anext(events) == GenerationDelta(text="x", token_ids=(1,))
    with pytest.raises(ReaderStalled):
        await anext(events)


async def test_the_first_end_wins_and_nothing_follows_it() -> None:
    stream = OutputStream()
    stream.finish(FINISHED)
    stream.fail(ReaderStalled("too slow"))
    stream.put_tokens("late", (1,))
    assert stream.is_closed
    assert await read(stream) == [FINISHED]


async def test_completions_pile_up_apart_and_the_longest_waiting_is_first() -> None:
    stream = OutputStream()
    stream.put_started(STARTED)
    for token_id in range(4):
        stream.put_tokens("x", (token_id,), index=1 - token_id % 2)
    events = stream.events()
    assert await anext(events) == STARTED
    assert await anext(events) == GenerationDelta(text="xx", token_ids=(0, 2), index=1)
    stream.put_tokens("y", (4,), index=1)
    assert await anext(events) == GenerationDelta(text="xx", token_ids=(1, 3), index=0)
    assert await anext(events) == GenerationDelta(text="y", token_ids=(4,), index=1)


async def test_what_is_held_is_renumbered_when_it_is_released() -> None:
    stream = OutputStream(is_held=True)
    stream.put_started(STARTED)
    events = stream.events()
    assert await anext(events) == STARTED
    later = asyncio.ensure_future(anext(events))
    for index in range(3):
        stream.put_tokens("ab"[: index + 1], (index,), index=index)
    await asyncio.sleep(0)
    assert not later.done()
    stream.release((2, 0))
    stream.finish(FINISHED)
    assert await later == GenerationDelta(text="ab", token_ids=(2,), index=0)
    assert [event async for event in events] == [GenerationDelta(text="a", token_ids=(0,), index=1), FINISHED]


async def test_an_error_does_not_wait_for_what_is_held() -> None:
    stream = OutputStream(is_held=True)
    stream.put_tokens("x", (1,))
    stream.fail(ReaderStalled("too slow"))
    with pytest.raises(ReaderStalled):
        await anext(stream.events())
