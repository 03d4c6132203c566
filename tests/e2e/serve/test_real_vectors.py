"""Vectors and ranks of the real model behind real processes are those that Transformers computes."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from headrace.client import AsyncClient, Pooling
from headrace.contract.sampling import completion_seed

Serve = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture
async def client(serve: Serve) -> AsyncIterator[AsyncClient]:
    async with (
        serve("serve", "--dtype=float32", "--thread-count=2", "--block-count=1024") as server,
        AsyncClient(server.address) as client,
    ):
        yield client


@torch.inference_mode()
def states_of(model: Any, prompt: tuple[int, ...]) -> NDArray[np.float32]:
    return np.asarray(model.model(torch.tensor([prompt])).last_hidden_state[0])


@torch.inference_mode()
def mean_logprob(model: Any, prompt: tuple[int, ...], completion: tuple[int, ...]) -> float:
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    logprobs = logits.log_softmax(dim=-1)[torch.arange(len(completion)), torch.tensor(completion)]
    return float(logprobs.mean())


async def test_vectors_are_those_of_transformers(
    client: AsyncClient, greedy_examples: Any, transformers_model: Any
) -> None:
    prompts = [example.prompt for example in greedy_examples]
    by_pooling = {pooling: await client.embed(prompts, pooling=pooling) for pooling in Pooling}
    for number, prompt in enumerate(prompts):
        states = states_of(transformers_model, prompt)
        for pooling, pooled in ((Pooling.MEAN, states.mean(axis=0)), (Pooling.LAST, states[-1])):
            found = np.array(by_pooling[pooling].vectors[number])
            wanted = pooled / np.linalg.norm(pooled)
            assert found @ wanted == pytest.approx(1.0, abs=1e-6)
            assert np.abs(found - wanted).max() < 1e-4


async def test_the_best_are_those_that_the_models_own_distribution_prefers(
    client: AsyncClient, greedy_examples: Any, transformers_model: Any
) -> None:
    """Whatever temperature and filters made of it when the tokens were drawn."""
    prompt = greedy_examples[1].prompt
    options: Any = {"temperature": 1.3, "top_k": 40, "seed": 3, "max_new_token_count": 12}
    best = await client.generate(prompt, completion_count=3, best_of=6, **options)
    candidates = await client.generate(prompt, completion_count=6, **options)
    means = [mean_logprob(transformers_model, prompt, candidate.token_ids) for candidate in candidates.completions]
    ranked = sorted(range(6), key=lambda index: -means[index])[:3]
    assert [completion.token_ids for completion in best.completions] == [
        candidates.completions[index].token_ids for index in ranked
    ]
    assert [completion.end.mean_logprob for completion in best.completions] == [
        pytest.approx(means[index], abs=1e-3) for index in ranked
    ]
    assert [completion.end.seed for completion in best.completions] == [completion_seed(3, index) for index in ranked]
    assert best.usage.generated_token_count == sum(len(candidate.token_ids) for candidate in candidates.completions)
