"""Models with adapters compute what PEFT computes, whatever the adapter's configuration and the company of its rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from plan_driver import Job, PlanDriver
from tiny_llama import SHAPE, VOCABULARY_SIZE, save_model, tiny_llama_config
from transformers import LlamaForCausalLM, PretrainedConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from headrace.contract.adapter import AdapterOrder
from headrace.contract.sampling import LogprobOptions
from headrace.shard.engines.native import NativeEngine, load_native_engine
from headrace.shard.engines.native_options import NativeOptions

# PEFT asks Transformers for something under a name that it is about to lose.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PROMPT = [int(token_id) for token_id in torch.arange(40) * 37 % VOCABULARY_SIZE]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
CONFIGS: dict[str, dict[str, Any]] = {
    "all-linear": {"target_modules": "all-linear"},
    "attention": {"target_modules": ATTENTION, "lora_alpha": 20},
    "one-of-three": {"target_modules": ["k_proj", "up_proj"]},
    "pattern": {"target_modules": r".*\.1\..*(q|down)_proj"},
    "whole-names": {"target_modules": ["layers.0.mlp.gate_proj", "self_attn.v_proj"]},
    "rslora": {"target_modules": ATTENTION, "use_rslora": True, "r": 9},
    "patterns": {
        "target_modules": [*ATTENTION, "gate_proj"],
        "rank_pattern": {"q_proj": 2, "layers.1.self_attn.k_proj": 11},
        "alpha_pattern": {"self_attn.v_proj": 3, ".*gate_proj": 30},
    },
    "some-layers": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    "excluded": {"target_modules": [*ATTENTION, "down_proj"], "exclude_modules": ["o_proj", "layers.0.mlp.down_proj"]},
}
MODELS: dict[str, tuple[type[PreTrainedModel], PretrainedConfig]] = {
    "llama": (LlamaForCausalLM, tiny_llama_config()),
    "biases": (LlamaForCausalLM, tiny_llama_config(attention_bias=True, mlp_bias=True, head_dim=20)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SHAPE)),
}


def save_adapter(model: PreTrainedModel, folder: Path, *, seed: int, **config: Any) -> PeftModel:
    """Saves an adapter with random weights and returns the model with it."""
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(**({"r": 4, "lora_alpha": 8, "init_lora_weights": False} | config)))
    assert isinstance(adapted, PeftModel)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    adapted.save_pretrained(folder)
    return adapted


def load_model(folder: Path, **options: Any) -> NativeEngine:
    options = {"block_count": 200, "block_size": 4, "thread_count": 1, "dtype": "float32"} | options
    return load_native_engine(NativeOptions(model=str(folder), **options), lambda _: None)


def load(engine: NativeEngine, folder: Path) -> str:
    return engine.prepare_adapter(AdapterOrder(source=str(folder)))().digest


def submit(driver: PlanDriver, adapter: str) -> Job:
    options = LogprobOptions(sampled=True, top_count=VOCABULARY_SIZE)
    return driver.submit(PROMPT, 8, logprobs=options, adapter=adapter)


def distributions(job: Job) -> torch.Tensor:
    found = torch.empty(len(job.generated), VOCABULARY_SIZE)
    for row, report in zip(found, job.logprobs, strict=True):
        row[torch.tensor(report.top_token_ids)] = torch.tensor(report.top_logprobs)
    return found


def expected_of(job: Job, model: torch.nn.Module) -> torch.Tensor:
    """Returns the log-distribution of each token that a job generated."""
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([PROMPT + job.generated])).logits[0]
    return logits[len(PROMPT) - 1 : -1].log_softmax(dim=-1)


def assert_same(job: Job, model: torch.nn.Module) -> None:
    torch.testing.assert_close(distributions(job), expected_of(job, model), atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_of_every_configuration(tmp_path: Path, name: str) -> None:
    model = save_model(tmp_path, *MODELS["llama"])
    engine = load_model(tmp_path)
    adapted = save_adapter(model, tmp_path / "adapter", seed=1, **CONFIGS[name])
    driver = PlanDriver(engine, chunk_token_count=13)
    job = submit(driver, load(engine, tmp_path / "adapter"))
    driver.run()
    assert_same(job, adapted)
    with torch.inference_mode():
        greedy = adapted.generate(torch.tensor([PROMPT]), max_new_tokens=8, do_sample=False, pad_token_id=2)
    assert job.generated == greedy[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("kernels", ["cpu", "reference"])
@pytest.mark.parametrize("name", MODELS)
def test_two_adapters_and_none_in_one_batch(tmp_path: Path, name: str, kernels: str) -> None:
    kind, config = MODELS[name]
    engine_folder = tmp_path / "model"
    plain = save_model(engine_folder, kind, config)
    engine = load_model(engine_folder, kernels=kernels)
    configs = (CONFIGS["all-linear"] | {"r": 17}, CONFIGS["one-of-three"])
    folders = (tmp_path / "first", tmp_path / "second")
    models: list[torch.nn.Module] = [plain]
    for seed, (folder, adapter_config) in enumerate(zip(folders, configs, strict=True)):
        fresh = kind.from_pretrained(engine_folder).eval()
        models.append(save_adapter(fresh, folder, seed=seed, **adapter_config).eval())
    digests = ["", *(load(engine, folder) for folder in folders)]
    driver = PlanDriver(engine, chunk_token_count=9)
    jobs = [submit(driver, digest) for digest in digests + digests]
    driver.run()
    for job, model in zip(jobs, models + models, strict=True):
        assert_same(job, model)
    assert len({tuple(job.generated) for job in jobs}) == 3


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"weight_format": "int8"}], ids=["bfloat16", "int8"])
def test_rounded_weights_stay_near_the_merged_model(tmp_path: Path, options: dict[str, str]) -> None:
    model = save_model(tmp_path / "model", *MODELS["llama"])
    adapted = save_adapter(model, tmp_path / "adapter", seed=3, target_modules="all-linear")
    engine = load_model(tmp_path / "model", **options)
    driver = PlanDriver(engine)
    job = submit(driver, load(engine, tmp_path / "adapter"))
    driver.run()
    found, plain = distributions(job), expected_of(job, LlamaForCausalLM.from_pretrained(tmp_path / "model").eval())
    merged = expected_of(job, adapted.merge_and_unload())
    # What rounding changes is little beside what the adapter changes.
    assert (found - merged).abs().mean() < 0.1 * (plain - merged).abs().mean()
