"""EmbeddingService through the Python client and real gRPC."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import numpy as np
import pytest

from headrace.client import AsyncClient, Client, DeadlineExceeded, FeatureUnsupported, InvalidRequest, Pooling
from headrace.contract.pooling import PoolingOptions
from headrace.shard.engines.fake import FakeOptions
from headrace.shard.engines.fake_oracle import expected_vector

Deploy = Callable[..., AbstractAsyncContextManager[Any]]
PROMPTS = (tuple(range(100, 150)), (7, 8, 9))


def wanted(prompt: tuple[int, ...], pooling: Pooling, **options: Any) -> tuple[float, ...]:
    data = expected_vector(prompt, PoolingOptions(pooling=pooling, **options), hidden_size=16)
    return tuple(np.frombuffer(data, dtype="<f4").tolist())


@pytest.mark.parametrize("pooling", Pooling)
async def test_vectors_cross_the_wire_unchanged(deploy: Deploy, pooling: Pooling) -> None:
    async with deploy() as server, AsyncClient(server.address) as client:
        answer = await client.embed(PROMPTS, pooling=pooling, request_id="mine")
        assert answer.vectors == tuple(wanted(prompt, pooling) for prompt in PROMPTS)
        assert [embedding.token_count for embedding in answer.embeddings] == [50, 3]
        assert (answer.request_id, answer.model) == ("mine", "test-model")
        assert (answer.token_count, answer.cached_token_count) == (53, 0)
        assert answer.computed_s > 0
        plain = await client.embed(PROMPTS[:1], pooling=pooling, normalize=False, dimension_count=4)
        assert plain.vectors == (wanted(PROMPTS[0], pooling, is_normalized=False, dimension_count=4),)
        server.check_integrity()


async def test_a_single_text_is_one_input(deploy: Deploy) -> None:
    async with deploy() as server, AsyncClient(server.address) as client:
        token_ids = (await client.tokenize("The sky is blue.")).token_ids
        text = await client.embed("The sky is blue.", pooling="last")
        assert text.vectors == (await client.embed([token_ids], pooling="last")).vectors
        assert len(text.embeddings) == 1


async def test_the_capability_is_told_with_its_limits(deploy: Deploy) -> None:
    async with deploy() as server, AsyncClient(server.address) as client:
        limits = (await client.get_model()).embedding
        assert limits is not None
        assert (limits.dimension_count, limits.input_count, limits.token_count) == (16, 64, 4000)
    async with deploy(engine=FakeOptions(hidden_size=0)) as server, AsyncClient(server.address) as client:
        assert (await client.get_model()).embedding is None
        with pytest.raises(FeatureUnsupported):
            await client.embed("text", pooling="mean")


async def test_errors_keep_their_details(deploy: Deploy) -> None:
    async with deploy(engine=FakeOptions(step_time_s=0.02)) as server, AsyncClient(server.address) as client:
        with pytest.raises(InvalidRequest) as caught:
            await client.embed(["fine", ""], pooling="mean", dimension_count=99)
        assert [violation.field for violation in caught.value.violations] == ["inputs[1].text", "dimension_count"]
        with pytest.raises(DeadlineExceeded):
            await client.embed([tuple(range(100, 3100))], pooling="mean", deadline_s=0.1)
        await server.until(lambda: server.stats().leased_block_count == 0)
        server.check_integrity()


async def test_a_pooling_that_does_not_exist_never_leaves(deploy: Deploy) -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(InvalidRequest, match="pooling: must be one of mean, last"):
        client.embed("text", pooling="max")  # type: ignore[arg-type]  # the test's point
