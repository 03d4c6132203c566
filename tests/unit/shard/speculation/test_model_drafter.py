"""A second model guesses: well where it thinks alike, and without changing a token where it does not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from plan_driver import Job, PlanDriver
from tiny_llama import save_model, tiny_llama_config
from transformers import LlamaForCausalLM

from headrace.contract.errors import StartupError
from headrace.contract.sampling import SamplingParams
from headrace.shard.engine import Engine
from headrace.shard.registry import create_engine
from headrace.shard.speculation.step_cost import StepCost

PROMPTS = (tuple(range(20, 29)), tuple(range(40, 140)), (7, 8, 7, 8, 9))
SAMPLINGS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.8, seed=3, top_p=0.9),
    SamplingParams(temperature=1.0, seed=4, repetition_penalty=1.2),
)


def save_tokenizer(folder: Path, tokens: dict[str, int]) -> None:
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": tokens}, "added_tokens": []}))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model, one that thinks otherwise, and one whose context is shorter."""
    found: dict[str, Path] = {}
    changes: dict[str, dict[str, object]] = {
        "target": {},
        "stranger": {"num_hidden_layers": 1, "initializer_range": 0.3},
        "short": {"max_position_embeddings": 64},
    }
    for name, change in changes.items():
        found[name] = tmp_path_factory.mktemp(name)
        save_model(found[name], LlamaForCausalLM, tiny_llama_config(**change))
        save_tokenizer(found[name], {f"t{index}": index for index in range(211)})
    return found


@pytest.fixture
def create(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    """Makes engines for which a guess always pays, whatever this machine is busy with."""
    torch.set_num_threads(1)
    monkeypatch.setattr(
        "headrace.shard.engines.native_loader.measure_steps", lambda *_args, **_options: StepCost((1, 2), (1.0, 1.0))
    )
    monkeypatch.setattr(StepCost, "observe", lambda *_args, **_options: None)
    monkeypatch.setattr("headrace.shard.speculation.model_drafter.ModelDrafter.depth_s", lambda _self, _row_count: 0.01)

    def make(**options: object) -> Engine:
        return create_engine("native", {"model": str(folders["target"]), "block_size": 4, "block_count": 301} | options)

    return make


def run(engine: Engine, *, chunk_token_count: int = 1 << 30) -> tuple[PlanDriver, list[Job]]:
    may_draft = engine.description.draft_token_limit > 0
    driver = PlanDriver(engine, chunk_token_count=chunk_token_count, may_draft=may_draft)
    jobs = [driver.submit(prompt, 40, sampling=sampling) for prompt in PROMPTS for sampling in SAMPLINGS]
    for _ in range(6):
        driver.step()
    driver.preempt(jobs[2])
    driver.run()
    return driver, jobs


@pytest.mark.parametrize("draft", ["target", "stranger", "short"])
def test_the_tokens_are_those_without_guesses(
    draft: str, folders: dict[str, Path], create: Callable[..., Engine]
) -> None:
    _, expected = run(create())
    driver, jobs = run(create(speculation="draft", draft_model=str(folders[draft])), chunk_token_count=33)
    assert [job.generated for job in jobs] == [job.generated for job in expected]
    assert driver.drafted_count > 0
    if draft == "target":
        # Greedy or not, the same model draws the same: what penalties change is all that it gets wrong.
        assert driver.accepted_count > 0.6 * sum(len(job.generated) for job in jobs)


def test_another_tokenizer_is_refused(folders: dict[str, Path], create: Callable[..., Engine], tmp_path: Path) -> None:
    save_model(tmp_path, LlamaForCausalLM, tiny_llama_config())
    save_tokenizer(tmp_path, {f"t{index}": (index + 1) % 211 for index in range(211)})
    with pytest.raises(StartupError, match="another tokenizer"):
        create(speculation="draft", draft_model=str(tmp_path))
    save_tokenizer(tmp_path, {f"t{index}": index for index in range(300)})
    create(speculation="draft", draft_model=str(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(StartupError, match=r"tokenizer\.json"):
        create(speculation="draft", draft_model=str(tmp_path))
    assert folders


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speculation": "draft"}, "draft_model"),
        ({"draft_model": "somewhere"}, "draft_model"),
        ({"speculation": "oracle"}, "off, ngram, draft"),
        ({"speculation": "ngram", "draft_token_limit": 0}, "draft_token_limit: 0 is below 1"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str, create: Callable[..., Engine]) -> None:
    with pytest.raises(StartupError, match=message):
        create(**options)
