"""Several completions of one prompt, through the Python client and real gRPC."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from headrace.client import AsyncClient, InvalidRequest
from headrace.contract.sampling import SamplingParams, completion_seed
from headrace.shard.engines.fake_oracle import expected_tokens

Deploy = Callable[..., AbstractAsyncContextManager[Any]]
PROMPT = tuple(range(100, 150))


@pytest.fixture
async def client(deploy: Deploy) -> AsyncIterator[AsyncClient]:
    async with deploy() as server, AsyncClient(server.address) as client:
        yield client
        await server.until(lambda: server.stats().leased_block_count == 0)
        server.check_integrity()


def alone(index: int, count: int) -> tuple[int, ...]:
    return expected_tokens(PROMPT, count, sampling=SamplingParams(seed=completion_seed(5, index)))


async def test_the_answer_and_the_stream_bring_the_same_completions(client: AsyncClient) -> None:
    options: Any = {"completion_count": 3, "temperature": 1.0, "seed": 5, "max_new_token_count": 20}
    answer = await client.generate(PROMPT, **options)
    assert [completion.token_ids for completion in answer.completions] == [alone(index, 20) for index in range(3)]
    assert [completion.end.seed for completion in answer.completions] == [completion_seed(5, n) for n in range(3)]
    async with client.stream(PROMPT, **options) as stream:
        indices = {delta.index async for delta in stream}
        streamed = await stream.result()
    assert indices == {0, 1, 2}
    assert streamed.completions == answer.completions
    assert streamed.usage.generated_token_count == 60


async def test_the_best_come_back_with_what_they_were_ranked_by(client: AsyncClient) -> None:
    options: Any = {"completion_count": 2, "best_of": 5, "temperature": 1.0, "seed": 5, "max_new_token_count": 20}
    answer = await client.generate(PROMPT, **options)
    means = [completion.end.mean_logprob for completion in answer.completions]
    assert None not in means
    assert means == sorted(means, key=lambda mean: -(mean or 0.0))
    assert answer.usage.generated_token_count == 100
    for completion in answer.completions:
        again = await client.generate(PROMPT, temperature=1.0, seed=completion.end.seed, max_new_token_count=20)
        assert again.token_ids == completion.token_ids
    async with client.stream(PROMPT, **options) as stream:
        assert (await stream.result()).completions == answer.completions


async def test_the_limit_is_told_and_held(client: AsyncClient) -> None:
    model = await client.get_model()
    assert model.limits.completion_count == 16
    assert {"completion_count", "best_of"} <= set(model.supported_fields)
    with pytest.raises(InvalidRequest) as caught:
        await client.generate(PROMPT, completion_count=17)
    assert [violation.field for violation in caught.value.violations] == ["completion_count"]
