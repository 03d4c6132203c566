from pathlib import Path

import pytest
from text_models import sentence_piece_metadata

from headrace.router.gguf_tokenizer import build_gguf_tokenizer
from headrace.router.model_card import load_tokenizer
from headrace.router.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def example_tokenizer(example_model: Path) -> Tokenizer:
    return load_tokenizer(example_model)


@pytest.fixture(scope="session")
def sentence_piece_tokenizer() -> Tokenizer:
    return Tokenizer(build_gguf_tokenizer(sentence_piece_metadata(), Path("model.gguf")))
