import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from headrace.router.gguf_metadata import GgufValue, read_gguf_metadata
from headrace.router.model_card import load_tokenizer
from headrace.router.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def example_metadata(example_model: Path) -> dict[str, GgufValue]:
    return read_gguf_metadata(example_model)


@pytest.fixture(scope="session")
def example_tokenizer(example_model: Path) -> Tokenizer:
    return load_tokenizer(example_model)


@pytest.fixture(scope="session")
def transformers_tokenizer(example_model: Path) -> PreTrainedTokenizerBase:
    """The example model's tokenizer as Transformers reads it from the same file."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    tokenizer = AutoTokenizer.from_pretrained(example_model.parent, gguf_file=example_model.name)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer
