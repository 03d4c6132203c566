"""The step engines that have to pass the suite, each small and quick."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_llama import BROKEN_TOKEN_ID, save_tiny_llama

from headrace.contract.vocabulary import Vocabulary
from headrace.shard.engine import Engine
from headrace.shard.registry import create_engine


@dataclass(frozen=True)
class EngineUnderTest:
    """How to make an engine, and what the suite has to know of it."""

    name: str
    create: Callable[..., Engine]
    """Makes a fresh one; keyword arguments are engine options."""
    broken_token_id: int
    """A token that fails the row that computes it."""


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llama")
    save_tiny_llama(folder)
    return folder


def small_fake(**options: object) -> Engine:
    defaults = {"block_size": 4, "block_count": 251, "context_token_count": 512, "error_token_id": 210}
    return create_engine("fake", defaults | options)


def spelled_vocabulary(size: int) -> Vocabulary:
    """Returns tokens that are one byte each as far as bytes go, and the model's own end."""
    tokens = (bytes([token_id]) if token_id < 256 else f"<{token_id}>".encode() for token_id in range(size))
    return Vocabulary(token_bytes=tuple(tokens), special_token_ids=(2,), end_of_sequence_token_ids=(2,))


@pytest.fixture(params=["fake", "native"])
def case(request: pytest.FixtureRequest, tiny_llama_folder: Path) -> EngineUnderTest:
    if request.param == "fake":
        return EngineUnderTest("fake", small_fake, broken_token_id=210)

    def create(**options: object) -> Engine:
        torch.set_num_threads(1)
        defaults = {"model": str(tiny_llama_folder), "block_size": 4, "block_count": 251}
        native = create_engine("native", defaults | options)
        native.load_vocabulary(spelled_vocabulary(native.description.vocabulary_size))
        return native

    return EngineUnderTest("native", create, broken_token_id=BROKEN_TOKEN_ID)


@pytest.fixture
def engine(case: EngineUnderTest) -> Engine:
    return case.create()


@pytest.fixture
def create(case: EngineUnderTest) -> Callable[..., Engine]:
    return case.create


@pytest.fixture
def broken_token_id(case: EngineUnderTest) -> int:
    return case.broken_token_id
