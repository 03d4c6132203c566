"""Sampling options on the real model, through the client: the tokens of Transformers, in any company."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from headrace.client.aio import AsyncClient
from headrace.contract.sampling import LengthPenalty
from headrace.router.model_card import load_tokenizer
from headrace.router.tokenizer import Tokenizer

Serve = Callable[..., AbstractAsyncContextManager[Any]]
FLOAT32 = ("--dtype=float32", "--thread-count=2")
COUNT = 24
TEXT = "The cat sat on the mat. The cat sat on the"


@pytest.fixture(scope="module")
def tokenizer(example_model: Path) -> Tokenizer:
    return load_tokenizer(example_model)


def of_transformers(model: PreTrainedModel, prompt: list[int], **options: object) -> list[int]:
    inputs = torch.tensor([prompt])
    generated = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=COUNT,
        do_sample=False,
        pad_token_id=2,
        **options,
    )
    return generated[0, len(prompt) :].tolist()


async def test_greedy_tokens_under_processors_are_those_of_transformers(
    serve: Serve, transformers_model: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    prompt = tokenizer.encode(TEXT, add_special_tokens=True)
    plain = of_transformers(transformers_model, prompt)
    bias = {plain[0]: -8.0, plain[1]: 3.0}
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
        ({"logit_bias": bias}, {"sequence_bias": {(token_id,): value for token_id, value in bias.items()}}),
        (
            {"length_penalty": LengthPenalty(start_index=3, decay_factor=1.6)},
            {"exponential_decay_length_penalty": (3, 1.6)},
        ),
        (
            {"repetition_penalty": 1.2, "logit_bias": bias, "min_new_token_count": 10},
            {
                "repetition_penalty": 1.2,
                "sequence_bias": {(token_id,): value for token_id, value in bias.items()},
                "min_new_tokens": 10,
            },
        ),
    ]
    expected = [of_transformers(transformers_model, prompt, **theirs) for _, theirs in cases]
    assert len({tuple(tokens) for tokens in expected}) == len(cases), "every option has to make a difference"
    # So few blocks that the requests preempt each other, and chunks smaller than the prompt.
    narrow = ("--block-count=10", "--context-token-limit=96", "--prefill-chunk-token-limit=5")
    async with serve("serve", *FLOAT32, *narrow) as server, AsyncClient(server.address) as client:
        requests = [
            client.generate(prompt, temperature=0.0, max_new_token_count=COUNT, **ours) for ours, _ in cases * 2
        ]
        together = await asyncio.gather(*requests)
    for index, result in enumerate(together):
        assert list(result.token_ids) == expected[index % len(cases)], cases[index % len(cases)]


KNOBS: list[dict[str, Any]] = [
    {"min_p": 0.05, "temperature": 1.3},
    {"typical_p": 0.8, "top_k": 40},
    {"frequency_penalty": 0.8, "presence_penalty": 0.3, "top_p": 0.95},
    {"repetition_penalty": 1.2, "logit_bias": {28: 2.0, 30: -100.0}},
    {"banned_words": ["the", "a"], "length_penalty": LengthPenalty(start_index=5, decay_factor=1.05)},
    {"temperature": 0.9, "min_new_token_count": 12},
    {"temperature": 0.0, "frequency_penalty": 1.0},
]


async def test_a_seeded_request_draws_the_same_alone_in_company_and_when_preempted(
    serve: Serve, tokenizer: Tokenizer
) -> None:
    prompt = tokenizer.encode(TEXT, add_special_tokens=True)
    narrow = ("--block-count=10", "--context-token-limit=96", "--prefill-chunk-token-limit=5")
    async with serve("serve", *FLOAT32, *narrow) as server, AsyncClient(server.address) as client:

        async def tokens_of(knobs: dict[str, Any], seed: int) -> tuple[int, ...]:
            options = {"temperature": 1.0, "seed": seed, "max_new_token_count": COUNT, **knobs}
            return (await client.generate(prompt, **options)).token_ids

        alone = [await tokens_of(knobs, 5) for knobs in KNOBS]
        together = await asyncio.gather(*(tokens_of(knobs, 5) for knobs in KNOBS * 2))
        other_seed = await tokens_of(KNOBS[0], 6)
    assert list(together) == alone * 2
    assert other_seed != alone[0]
    assert 30 not in alone[3]
    assert len(alone[5]) >= 12


async def test_banned_words_never_appear_however_much_they_are_wanted(serve: Serve, tokenizer: Tokenizer) -> None:
    banned = ["Paris", "aris", " capital", "France", "é"]
    async with serve("serve", *FLOAT32, "--block-count=512") as server, AsyncClient(server.address) as client:
        question = "The capital of France is"
        plain = await client.generate(question, temperature=0.0, max_new_token_count=40)
        assert any(word in plain.text for word in banned)
        drawn = [
            client.generate(question, seed=seed, temperature=1.5, max_new_token_count=60, banned_words=banned)
            for seed in range(12)
        ]
        # Pushes every token that the words could begin with, so that the bars have to hold at each of them.
        beginnings = [word[:end] for word in banned for end in range(1, len(word) + 1)]
        pieces = [tokenizer.encode(beginning, add_special_tokens=False) for beginning in beginnings]
        bias = {token_id: 12.0 for token_ids in pieces for token_id in token_ids}
        drawn += [
            client.generate(question, seed=seed, max_new_token_count=60, banned_words=banned, logit_bias=bias)
            for seed in range(12)
        ]
        for result in await asyncio.gather(*drawn):
            assert not any(word in result.text for word in banned), result.text
