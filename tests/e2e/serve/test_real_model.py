"""The real model behind real processes: the tokens of Transformers, whatever happens on the way."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from headrace.v1 import generate_service_pb2 as pb
from headrace.v1 import router_service_pb2 as router_pb
from headrace.v1.sampling_pb2 import SamplingParams

Serve = Callable[..., AbstractAsyncContextManager[Any]]
FLOAT32 = ("--dtype=float32", "--thread-count=2")
GREEDY = SamplingParams(temperature=0.0)


def request_of(token_ids: tuple[int, ...], count: int, sampling: SamplingParams = GREEDY) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=token_ids),
        sampling=sampling,
        stopping=pb.StoppingRules(max_new_token_count=count),
    )


async def tokens_of(server: Any, request: pb.GenerateRequest) -> tuple[int, ...]:
    call = server.generate.GenerateStream(request)
    return tuple([token_id async for message in call for token_id in message.delta.token_ids])


async def load_of(server: Any) -> Any:
    (replica,) = (await server.router.ListReplicas(router_pb.ListReplicasRequest())).replicas
    return replica.load


@pytest.fixture
async def server(serve: Serve) -> AsyncIterator[Any]:
    async with serve("serve", *FLOAT32, "--block-count=1024") as running:
        yield running


async def test_greedy_tokens_are_those_of_transformers(server: Any, greedy_examples: Any) -> None:
    for example in greedy_examples:
        tokens = await tokens_of(server, request_of(example.prompt, 16))
        assert tokens == example.expected, example.text
    together = await asyncio.gather(*(tokens_of(server, request_of(example.prompt, 16)) for example in greedy_examples))
    assert list(together) == [example.expected for example in greedy_examples]
    text = await server.generate.Generate(
        pb.GenerateRequest(
            text=greedy_examples[0].text, sampling=GREEDY, stopping=pb.StoppingRules(max_new_token_count=16)
        )
    )
    assert tuple(text.completions[0].token_ids) == greedy_examples[0].expected


async def test_chunked_prefill_and_preemption_change_nothing(serve: Serve, greedy_examples: Any) -> None:
    longest = max(len(example.prompt) for example in greedy_examples)
    blocks = -(-(longest + 16) // 16) + 6
    narrow = ("--prefill-chunk-token-limit=24", "--step-token-limit=64", f"--block-count={blocks}")
    context = f"--context-token-limit={blocks * 16}"
    async with serve("serve", *FLOAT32, *narrow, context) as server:
        # Longer than what is compared, so that the sequences outgrow the blocks together.
        together = await asyncio.gather(
            *(tokens_of(server, request_of(example.prompt, 64)) for example in greedy_examples)
        )
        for example, tokens in zip(greedy_examples, together, strict=True):
            assert tokens[: len(example.expected)] == example.expected, example.text
        assert (await load_of(server)).preemption_count > 0


async def test_a_shared_prefix_is_reused_and_changes_nothing(server: Any, greedy_examples: Any) -> None:
    shared = tuple(token_id for example in greedy_examples for token_id in example.prompt)[:500]
    suffixes = [greedy_examples[0].prompt, greedy_examples[1].prompt]
    plain = [await tokens_of(server, request_of((*shared, *suffix), 8)) for suffix in suffixes]
    before = await load_of(server)
    again = await server.generate.Generate(request_of((*shared, *suffixes[1]), 8))
    after = await load_of(server)
    assert tuple(again.completions[0].token_ids) == plain[1]
    assert again.usage.cached_token_count >= 496
    computed = after.computed_token_count - before.computed_token_count
    assert computed == len(shared) + len(suffixes[1]) - again.usage.cached_token_count + 7


async def test_a_killed_shard_changes_no_text(server: Any, greedy_examples: Any) -> None:
    requests = [
        request_of(
            example.prompt, 48, GREEDY if number % 2 else SamplingParams(temperature=0.8, top_p=0.95, seed=number)
        )
        for number, example in enumerate(greedy_examples[:16])
    ]
    undisturbed = await asyncio.gather(*(tokens_of(server, request) for request in requests))
    (shard,) = server.program.children()
    streams = [asyncio.ensure_future(tokens_of(server, request)) for request in requests]
    while (await load_of(server)).running_count < 16:  # noqa: ASYNC110  # another process
        await asyncio.sleep(0.01)
    generated = (await load_of(server)).generated_token_count
    while (await load_of(server)).generated_token_count < generated + 64:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    os.kill(shard, signal.SIGKILL)
    assert await asyncio.gather(*streams) == undisturbed
    (replica,) = (await server.router.ListReplicas(router_pb.ListReplicasRequest())).replicas
    assert replica.restart_count == 1
    assert server.program.children() != [shard]
