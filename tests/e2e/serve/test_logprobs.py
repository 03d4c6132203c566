"""Log-probabilities of the real model, through the client: those of Transformers, and offsets that fit the text."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from headrace.client.aio import AsyncClient
from headrace.client.results import TokenLogprob
from headrace.router.model_card import load_tokenizer

Serve = Callable[..., AbstractAsyncContextManager[Any]]
TEXTS = (
    "Rivers rise in the mountains and end in the sea, wherever that may be. " * 3,
    "naïve café 日本 🙂 and so on: ",
    "One",
)
TOP_COUNT = 3


def of_transformers(model: PreTrainedModel, token_ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0].log_softmax(dim=-1)


def check(entries: tuple[TokenLogprob, ...], expected: torch.Tensor) -> None:
    """Compares with the log-probabilities [entry, vocabulary] that each token was drawn from."""
    for entry, row in zip(entries, expected, strict=True):
        assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=2e-3)
        # A rounding apart, as many are likelier.
        likelier = [(row > row[entry.token_id] + margin).sum().item() + 1 for margin in (2e-3, -2e-3)]
        assert likelier[0] <= entry.rank <= likelier[1]
        best = row.topk(TOP_COUNT).values.tolist()
        assert [rival.logprob for rival in entry.top] == pytest.approx(best, abs=2e-3)
        assert [rival.rank for rival in entry.top] == [1, 2, 3]


async def test_prompt_and_completion_are_those_of_transformers(
    serve: Serve, example_model: Path, transformers_model: PreTrainedModel
) -> None:
    tokenizer = load_tokenizer(example_model)
    options: dict[str, Any] = {
        "temperature": 1.0,
        "seed": 4,
        "repetition_penalty": 1.4,
        "token_logprobs": True,
        "prompt_logprobs": True,
        "top_logprob_count": TOP_COUNT,
        "max_new_token_count": 20,
    }
    flags = ("--dtype=float32", "--thread-count=2", "--prefill-chunk-token-limit=17", "--block-count=256")
    async with serve("serve", *flags) as server, AsyncClient(server.address) as client:
        # Twice, so that the second time the prefix cache holds the prompt.
        for _ in range(2):
            answers = await asyncio.gather(*(client.generate(text, **options) for text in TEXTS))
        without = await client.generate(
            TEXTS[0], temperature=1.0, seed=4, repetition_penalty=1.4, max_new_token_count=20
        )
    assert without.usage.cached_token_count > 0
    assert without.token_ids == answers[0].token_ids
    for text, answer in zip(TEXTS, answers, strict=True):
        prompt = tokenizer.encode(text, add_special_tokens=True)
        expected = of_transformers(transformers_model, [*prompt, *answer.token_ids])
        assert answer.usage.cached_token_count == 0
        assert [entry.token_id for entry in answer.prompt_logprobs] == prompt
        assert answer.prompt_logprobs[0].logprob is None
        check(answer.prompt_logprobs[1:], expected[: len(prompt) - 1])
        completion = answer.completions[0]
        assert tuple(entry.token_id for entry in completion.logprobs) == completion.token_ids
        check(completion.logprobs, expected[len(prompt) - 1 : -1])


async def test_offsets_point_into_the_text(serve: Serve) -> None:
    """A character's bytes may lie in several tokens, so slices are of bytes."""
    async with serve("serve", "--block-count=256") as server, AsyncClient(server.address) as client:
        options: dict[str, Any] = {"token_logprobs": True, "max_new_token_count": 80, "temperature": 0.0}
        for text in ("Japanese: 日本語の", "Emoji: 🙂🙃😀", "List three rivers."):
            answer = await client.generate(text, **options)
            data = answer.text.encode()
            entries = answer.completions[0].logprobs
            ends = [entry.byte_offset for entry in entries[1:]] + [len(data)]
            assert entries[0].byte_offset == 0
            for entry, end in zip(entries, ends, strict=True):
                piece = data[entry.byte_offset : end]
                assert piece.decode("utf-8", "replace") == entry.text or not piece
