"""Speculation on the real model, through the client: the same answers in fewer steps, whatever is asked."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from headrace.client.aio import AsyncClient
from headrace.client.constraint import Regex
from headrace.client.results import Generation
from headrace.contract.errors import FeatureUnsupported

Serve = Callable[..., AbstractAsyncContextManager[Any]]
PROMPT = "one two three four five. one two three four five. one two three"
ASKED: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "token_logprobs": True, "top_logprob_count": 2},
    {"temperature": 0.0, "stop_sequences": ["three four"], "min_new_token_count": 9},
    {"temperature": 0.8, "seed": 7, "top_p": 0.9, "completion_count": 2},
    {"temperature": 0.6, "seed": 8, "repetition_penalty": 1.05, "frequency_penalty": 0.1, "banned_words": ["six"]},
    {"temperature": 0.7, "seed": 9, "constraint": Regex(r"( (one|two|three|four|five)[.]?){20}")},
]


def told(answer: Generation) -> object:
    return [(one.text, one.token_ids, one.logprobs, one.reason) for one in answer.completions]


async def test_guesses_save_steps_and_change_nothing(serve: Serve) -> None:
    # So few blocks that not all requests run at once, with little room for guesses, and chunks smaller than the prompt.
    narrow = ("--block-count=14", "--context-token-limit=112", "--prefill-chunk-token-limit=9")
    async with (
        serve("serve", "--dtype=bfloat16", "--thread-count=2", "--speculation=ngram", *narrow) as server,
        AsyncClient(server.address) as client,
    ):
        assert "speculation" in (await client.get_model()).supported_fields
        plain = [
            await client.generate(PROMPT, max_new_token_count=28, speculation=False, **options) for options in ASKED
        ]
        assert not any(answer.usage.drafted_token_count for answer in plain)
        calls = (client.generate(PROMPT, max_new_token_count=28, **options) for options in ASKED)
        answers = await asyncio.gather(*calls)
        assert [told(answer) for answer in answers] == [told(answer) for answer in plain]
        usages = [answer.usage for answer in answers]
        assert sum(usage.accepted_token_count for usage in usages) > 0
        [replica] = await client.list_replicas()
        assert replica.load.drafted_token_count == sum(usage.drafted_token_count for usage in usages)
        assert replica.load.accepted_token_count == sum(usage.accepted_token_count for usage in usages)


async def test_asking_for_what_is_off_is_refused(serve: Serve) -> None:
    async with serve("serve", "--engine=fake") as server, AsyncClient(server.address) as client:
        with pytest.raises(FeatureUnsupported, match="speculation"):
            await client.generate(PROMPT, speculation=True)
        await client.generate(PROMPT, speculation=False, max_new_token_count=2)
