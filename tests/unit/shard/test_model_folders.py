"""Models of every supported shape, saved by Transformers, compute the same distributions here as there."""

import json
from pathlib import Path

import pytest
import torch
from plan_driver import PlanDriver
from safetensors.torch import load_file, save_file
from tiny_llama import SHAPE, VOCABULARY_SIZE, save_model, tiny_llama_config
from transformers import (
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from headrace.contract.errors import StartupError
from headrace.contract.sampling import LogprobOptions
from headrace.shard.engines.native import NativeEngine, load_native_engine
from headrace.shard.engines.native_options import NativeOptions

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, tuple[type[PreTrainedModel], PretrainedConfig]] = {
    "plain": (LlamaForCausalLM, tiny_llama_config()),
    "tied": (LlamaForCausalLM, tiny_llama_config(tie_word_embeddings=True)),
    "one-kv-head": (LlamaForCausalLM, tiny_llama_config(num_key_value_heads=1)),
    "all-kv-heads": (LlamaForCausalLM, tiny_llama_config(num_key_value_heads=6)),
    "own-head-size": (LlamaForCausalLM, tiny_llama_config(head_dim=20)),
    "biases": (LlamaForCausalLM, tiny_llama_config(attention_bias=True, mlp_bias=True)),
    "llama3-rope": (LlamaForCausalLM, tiny_llama_config(rope_parameters=LLAMA3_SCALING)),
    "linear-rope": (
        LlamaForCausalLM,
        tiny_llama_config(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}),
    ),
    "mistral": (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=100)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SHAPE)),
}


def load(folder: Path, **options: object) -> NativeEngine:
    options = {"block_count": 64, "block_size": 4, "thread_count": 1, "dtype": "float32"} | options
    return load_native_engine(NativeOptions(model=str(folder), **options), lambda _: None)


def distributions(engine: NativeEngine, prompt: list[int], count: int) -> tuple[list[int], torch.Tensor]:
    """Generates, and returns the tokens and the whole log-distribution of each."""
    driver = PlanDriver(engine, chunk_token_count=20)
    job = driver.submit(prompt, count, logprobs=LogprobOptions(sampled=True, top_count=VOCABULARY_SIZE))
    driver.run()
    found = torch.empty(count, VOCABULARY_SIZE)
    for row, report in zip(found, job.logprobs, strict=True):
        row[torch.tensor(report.top_token_ids)] = torch.tensor(report.top_logprobs)
    return job.generated, found


@pytest.mark.parametrize("name", MODELS)
def test_distributions_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    model = save_model(tmp_path, *MODELS[name])
    engine = load(tmp_path)
    assert engine.description.architecture == type(model).__name__
    prompt = [int(token_id) for token_id in torch.arange(70) * 37 % VOCABULARY_SIZE]
    generated, found = distributions(engine, prompt, 8)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + generated])).logits[0]
    expected = logits[len(prompt) - 1 : -1].log_softmax(dim=-1)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    assert generated == expected.argmax(dim=-1).tolist()


def test_a_sliding_window_bounds_the_context(tmp_path: Path) -> None:
    save_model(tmp_path, *MODELS["mistral"])
    assert load(tmp_path).description.context_token_count == 100


def test_the_type_is_that_of_the_files_where_it_is_fast(tmp_path: Path) -> None:
    model = save_model(tmp_path / "wide", *MODELS["plain"]).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "narrow")
    assert load(tmp_path / "wide", dtype="auto").description.weight_type == "float32"
    is_fast = torch.cpu.get_capabilities().get("avx512_bf16", False)
    assert load(tmp_path / "narrow", dtype="auto").description.weight_type == ("bfloat16" if is_fast else "float32")
    assert load(tmp_path / "narrow", dtype="auto", kernels="reference").description.weight_type == "float32"


def test_files_in_pieces_and_in_bfloat16(tmp_path: Path) -> None:
    model = save_model(tmp_path / "whole", *MODELS["plain"]).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "pieces", max_shard_size="30KB")
    assert len(list((tmp_path / "pieces").glob("*.safetensors"))) > 2
    _, found = distributions(load(tmp_path / "pieces"), [5, 6, 7], 1)
    reloaded = LlamaForCausalLM.from_pretrained(tmp_path / "pieces", dtype=torch.float32)
    with torch.inference_mode():
        expected = reloaded(torch.tensor([[5, 6, 7]])).logits[0, -1:].log_softmax(dim=-1)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path, *MODELS["plain"])
    return tmp_path


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_description_comes_from_the_files(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 9]}))
    description = load(folder, dtype="bfloat16", context_token_count=300).description
    assert description.weight_type == "bfloat16"
    assert description.vocabulary_size == VOCABULARY_SIZE
    assert description.context_token_count == 300
    assert description.end_of_sequence_token_ids == (2, 9)


def test_loading_is_told_in_bytes(folder: Path) -> None:
    told: list[str] = []
    load_native_engine(NativeOptions(model=str(folder), block_count=8), told.append)
    assert told[0] == f"opening {folder}"
    loading = [line for line in told if line.startswith("loading weights: ")]
    assert len(loading) > 5
    assert "of 0 MiB" in loading[-1]
    assert told[-1].startswith("KV cache: 8 blocks of 16 tokens = 128 tokens, ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "'GPT2LMHeadModel' is not supported.*LlamaForCausalLM"),
        ({"architectures": None}, "None is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling 'yarn'.*llama3"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor is None"),
        ({"rope_parameters": [1]}, "rope parameters"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"num_key_value_heads": 4}, "6 attention heads cannot share 4"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
        ({"eos_token_id": "two"}, "eos_token_id 'two'"),
        (
            {"vocab_size": 212},
            r"embed_tokens.weight' has shape \(211, 48\), the configuration means \(212, 48\)",
        ),
        ({"num_hidden_layers": 3}, "no tensor 'model.layers.2.input_layernorm.weight'"),
        ({"num_hidden_layers": 1}, "'model.layers.1.input_layernorm.weight' and 8 more that LlamaForCausalLM"),
        ({"head_dim": 7}, "odd head size of 7"),
    ],
)
def test_what_cannot_run_is_named(folder: Path, changes: dict[str, object], message: str) -> None:
    (folder / "generation_config.json").unlink()
    change_config(folder, **changes)
    with pytest.raises(StartupError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype: 'int8' is none of auto, float32, bfloat16"),
        ({"device": "abacus"}, "device: 'abacus' cannot be used"),
        ({"kernels": "abacus"}, "kernels: .*'abacus'"),
        ({"context_token_count": 513}, "513 is more than the model's 512"),
        ({"block_count": 0, "kv_memory_bytes": 100}, "not one block"),
        ({"block_count": 1 << 40}, "are left after loading"),
    ],
)
def test_options_that_cannot_be_are_named(folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        load(folder, **options)


def test_older_configurations_are_understood(folder: Path) -> None:
    """Rotary parameters used to lie beside the others, and files kept a buffer of frequencies."""
    _, expected = distributions(load(folder), [5, 6, 7], 1)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    path.write_text(json.dumps(config | {"rope_scaling": None}))
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    save_file(weights, folder / "model.safetensors")
    _, found = distributions(load(folder), [5, 6, 7], 1)
    torch.testing.assert_close(found, expected)


def test_an_unknown_tensor_is_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({"model.layers.0.mlp.spare.weight": torch.zeros(3)}, folder / "more.safetensors")
    with pytest.raises(StartupError, match=r"'model.layers.0.mlp.spare.weight' that LlamaForCausalLM does not know"):
        load(folder)
    save_file({"model.norm.weight": weights["model.norm.weight"]}, folder / "more.safetensors")
    with pytest.raises(StartupError, match=r"both have a tensor 'model.norm.weight'"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "config.json: "),
        ("config.json", b"[]", "does not hold a JSON object"),
        ("config.json", None, "config.json does not exist"),
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0 nonsense", "model.safetensors: "),
        ("model.safetensors", None, "has no .*safetensors"),
    ],
)
def test_damaged_folders_are_named(folder: Path, name: str, content: bytes | None, message: str) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(StartupError, match=message):
        load(folder)


def test_paths_that_hold_no_model_are_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(StartupError, match=r"notes.txt is neither a folder nor a .gguf file"):
        load(tmp_path / "notes.txt")
    with pytest.raises(StartupError, match=r"nothing.gguf does not exist"):
        load(tmp_path / "nothing.gguf")
