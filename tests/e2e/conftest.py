"""The example model, as Transformers runs it: what every other way to run it is compared with."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from parity_prompts import PROMPTS
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.utils import logging

from headrace.router.model_card import load_tokenizer

NEW_TOKEN_COUNT = 16
END_TOKEN_ID = 2


@dataclass(frozen=True)
class GreedyExample:
    """A prompt and what Transformers makes of it, greedily and in float32."""

    text: str
    prompt: tuple[int, ...]
    expected: tuple[int, ...]
    """Up to NEW_TOKEN_COUNT tokens; END_TOKEN_ID is the last if it comes up."""


@pytest.fixture(scope="session")
def transformers_model(example_model: Path) -> PreTrainedModel:
    torch.set_num_threads(2)
    logging.disable_progress_bar()
    return LlamaForCausalLM.from_pretrained(example_model.parent, gguf_file=example_model.name, dtype=torch.float32)


@pytest.fixture(scope="session")
def greedy_examples(example_model: Path, transformers_model: PreTrainedModel) -> tuple[GreedyExample, ...]:
    """Generates for prompts of like length together, padded: alone they would take several times as long."""
    tokenizer = load_tokenizer(example_model)
    prompts = [tuple(tokenizer.encode(text, add_special_tokens=True)) for text in PROMPTS]
    by_length = sorted(prompts, key=len)
    expected = {}
    for start in range(0, len(by_length), 5):
        expected |= _generate(transformers_model, by_length[start : start + 5])
    return tuple(GreedyExample(text, prompt, expected[prompt]) for text, prompt in zip(PROMPTS, prompts, strict=True))


def _generate(model: PreTrainedModel, prompts: list[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[int, ...]]:
    longest = max(map(len, prompts))
    generated = model.generate(
        torch.tensor([[END_TOKEN_ID] * (longest - len(prompt)) + list(prompt) for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        max_new_tokens=NEW_TOKEN_COUNT,
        do_sample=False,
        pad_token_id=END_TOKEN_ID,
    )
    rows = generated[:, longest:].tolist()
    counts = [row.index(END_TOKEN_ID) + 1 if END_TOKEN_ID in row else len(row) for row in rows]
    return {prompt: tuple(row[:count]) for prompt, row, count in zip(prompts, rows, counts, strict=True)}
