"""Log-probabilities of the prompt over real gRPC: each token once and in order, however it was computed."""

import math
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from headrace.router.pipeline import ServedModel
from headrace.shard.engines.fake import FakeOptions
from headrace.shard.engines.fake_oracle import drawn_share, expected_tokens
from headrace.v1 import generate_service_pb2 as pb
from headrace.v1.sampling_pb2 import SamplingParams

Deploy = Callable[..., AbstractAsyncContextManager[Any]]
REPORTED = pb.OutputOptions(prompt_logprobs=True)


def prompt_of(number: int, length: int) -> list[int]:
    return [100 + (number * 7919 + index * 31) % 40000 for index in range(length)]


def request_of(prompt: list[int], count: int, output: pb.OutputOptions = REPORTED, **fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=prompt),
        sampling=SamplingParams(temperature=0.0),
        stopping=pb.StoppingRules(max_new_token_count=count),
        output=output,
        **fields,
    )


def check(entries: Any, prompt: list[int], top_count: int = 0) -> None:
    assert [entry.token_id for entry in entries] == prompt
    assert not entries[0].HasField("logprob")
    assert (entries[0].rank, len(entries[0].top)) == (0, 0)
    for entry in entries[1:]:
        assert entry.logprob == pytest.approx(math.log(drawn_share(entry.token_id)))
        assert len(entry.top) == top_count


async def test_every_prompt_token_is_reported_in_chunks_and_past_the_prefix_cache(
    deploy: Deploy, served_model: ServedModel
) -> None:
    prompt = prompt_of(1, 700)
    async with deploy() as server:
        top = pb.OutputOptions(prompt_logprobs=True, token_logprobs=True, top_logprob_count=2)
        for _ in range(2):
            answer = await server.generate.Generate(request_of(prompt, 3, top))
            check(answer.prompt_logprobs, prompt, top_count=2)
            assert tuple(answer.completions[0].token_ids) == expected_tokens(prompt, 3)
            assert len(answer.completions[0].logprobs) == 3
            assert answer.usage.cached_token_count == 0
        plain = await server.generate.Generate(request_of(prompt, 3, pb.OutputOptions()))
        assert not plain.prompt_logprobs
        assert plain.usage.cached_token_count > 600
        texts = served_model.tokenizer.token_bytes(include_special_tokens=True)
        offset = 0
        for entry in answer.prompt_logprobs:
            assert entry.byte_offset == offset
            offset += len(texts[entry.token_id])


async def test_started_brings_them_before_any_token(deploy: Deploy) -> None:
    prompt = prompt_of(2, 600)
    async with deploy() as server:
        messages = [message async for message in server.generate.GenerateStream(request_of(prompt, 4))]
    assert messages[0].WhichOneof("event") == "started"
    assert all(message.WhichOneof("event") != "started" for message in messages[1:])
    check(messages[0].started.prompt_logprobs, prompt)
    one = prompt_of(3, 1)
    async with deploy() as server:
        answer = await server.generate.Generate(request_of(one, 1))
        check(answer.prompt_logprobs, one)
        several = await server.generate.Generate(request_of(prompt, 2, completion_count=3, best_of=4))
        check(several.prompt_logprobs, prompt)
        assert len(several.completions) == 3


async def test_a_prompt_that_is_set_aside_midway_has_no_gaps_and_nothing_twice(deploy: Deploy) -> None:
    """Requests that decode outgrow the blocks that a long prompt left them, before its last chunk is computed."""
    engine = FakeOptions(block_count=80, context_token_count=1024, token_limit=24, step_time_s=0.002)
    long = prompt_of(1, 900)
    async with deploy(engine=engine) as server:
        calls = [server.generate.GenerateStream(request_of(prompt_of(number, 20), 200)) for number in range(10, 16)]
        started = [await anext(aiter(call)) for call in calls]
        answer = await server.generate.Generate(request_of(long, 5))
        check(answer.prompt_logprobs, long)
        assert tuple(answer.completions[0].token_ids) == expected_tokens(long, 5)
        assert server.stats().preemption_count > 0
        for number, message in enumerate(started, start=10):
            check(message.started.prompt_logprobs, prompt_of(number, 20))


async def test_a_request_that_ends_before_its_prompt_is_computed_reports_nothing(deploy: Deploy) -> None:
    engine = FakeOptions(step_time_s=0.2)
    request = request_of(prompt_of(1, 3000), 10)
    request.stopping.time_limit.FromMilliseconds(300)
    async with deploy(engine=engine) as server:
        answer = await server.generate.Generate(request)
        assert answer.completions[0].end.reason == pb.FINISH_REASON_TIME_LIMIT
        assert not answer.prompt_logprobs
        assert not answer.completions[0].token_ids
