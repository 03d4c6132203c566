"""Pooled hidden states are those of Transformers, on the same weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from plan_driver import PlanDriver
from tiny_llama import save_model, tiny_llama_config
from transformers import LlamaForCausalLM, PreTrainedModel

from headrace.contract.pooling import Pooling, PoolingOptions
from headrace.shard.pooler import make_vector
from headrace.shard.registry import create_engine

PROMPTS = tuple(tuple(3 + (7 * index + 11 * number) % 200 for index in range(5 + 13 * number)) for number in range(4))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    folder = tmp_path_factory.mktemp("llama")
    return folder, save_model(folder, LlamaForCausalLM, tiny_llama_config())


@torch.inference_mode()
def states_of(model: PreTrainedModel, prompt: tuple[int, ...]) -> NDArray[np.float32]:
    return np.asarray(model.model(torch.tensor([prompt])).last_hidden_state[0])


@pytest.mark.parametrize("kernels", ["reference", "auto"])
@pytest.mark.parametrize("pooling", Pooling)
def test_vectors_are_those_of_transformers(saved: tuple[Path, PreTrainedModel], kernels: str, pooling: Pooling) -> None:
    folder, model = saved
    options = {"model": str(folder), "block_size": 4, "block_count": 200, "kernels": kernels, "dtype": "float32"}
    driver = PlanDriver(create_engine("native", options), chunk_token_count=10)
    wish = PoolingOptions(pooling=pooling, is_normalized=False)
    jobs = [driver.submit_pooled(prompt, wish) for prompt in PROMPTS]
    driver.run()
    for job in jobs:
        states = states_of(model, job.prompt)
        wanted = states.mean(axis=0) if pooling is Pooling.MEAN else states[-1]
        assert job.vector is not None
        found = np.frombuffer(job.vector, dtype="<f4")
        assert np.abs(found - wanted).max() < 1e-4 * np.abs(states).max()
        assert found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted) == pytest.approx(1.0, abs=1e-6)


def test_a_vector_of_zeros_has_no_direction() -> None:
    """And dividing by its length would make it one of NaNs."""
    vector = make_vector(np.zeros(4), PoolingOptions(pooling=Pooling.MEAN))
    assert np.frombuffer(vector, dtype="<f4").tolist() == [0.0] * 4
