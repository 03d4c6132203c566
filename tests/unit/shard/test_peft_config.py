"""Every option of an adapter's configuration is followed, or refused by its name."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_adapters import EVERYWHERE, save_lora, save_tensors
from safetensors.torch import load_file
from tiny_llama import save_tiny_llama

from headrace.contract.adapter import AdapterOrder
from headrace.contract.errors import AdaptersFull, InvalidRequest
from headrace.shard.engines.native import NativeEngine, load_native_engine
from headrace.shard.engines.native_options import NativeOptions
from headrace.shard.peft_config import PeftConfig, parse_peft_config

NAMES = ("self_attn.q_proj", "mlp.up_proj")
DEFAULT_OPTIONS: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "bias": "none",
    "fan_in_fan_out": False,
    "layer_replication": None,
    "lora_bias": False,
    "lora_dropout": 0.1,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_version": "0.18.0",
    "qalora_group_size": 16,
    "runtime_config": {"ephemeral_gpu_offload": False},
    "an_option_of_a_later_release": None,
    "task_type": "CAUSAL_LM",
    "use_dora": False,
}


def parse(**config: Any) -> PeftConfig:
    complete = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]} | config
    return parse_peft_config(json.dumps(complete).encode(), NAMES)


def test_options_that_are_off_are_no_reason_to_refuse() -> None:
    config = parse(**DEFAULT_OPTIONS)
    assert (config.rank_of("model.layers.0.self_attn.q_proj"), config.scale_of("x")) == (8, 2.0)


@pytest.mark.parametrize(
    ("targets", "covered", "others"),
    [
        (["q_proj"], ["model.layers.0.self_attn.q_proj"], ["model.layers.0.self_attn.eq_proj", "lm_head"]),
        (["0.self_attn.q_proj"], ["model.layers.0.self_attn.q_proj"], ["model.layers.10.self_attn.q_proj"]),
        ("all-linear", ["model.layers.3.mlp.up_proj"], ["model.layers.3.mlp.down_proj", "lm_head"]),
        (r".*\.q_proj", ["model.layers.0.self_attn.q_proj"], ["model.layers.0.self_attn.q_proj.x"]),
    ],
)
def test_which_layers_are_meant(targets: Any, covered: list[str], others: list[str]) -> None:
    config = parse(target_modules=targets)
    assert [config.covers(name) for name in covered] == [True] * len(covered)
    assert [config.covers(name) for name in others] == [False] * len(others)


def test_ranks_and_scales_by_pattern() -> None:
    config = parse(
        use_rslora=True, rank_pattern={"q_proj": 4, r"layers\.1\..*": 9}, alpha_pattern={"layers.1.mlp.up_proj": 3}
    )
    assert config.rank_of("model.layers.1.self_attn.q_proj") == 4
    assert config.rank_of("model.layers.1.mlp.up_proj") == 9
    assert config.rank_of("model.layers.0.mlp.up_proj") == 8
    assert config.scale_of("model.layers.1.mlp.up_proj") == 1.0
    assert config.scale_of("model.layers.0.mlp.up_proj") == 16 / math.sqrt(8)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported; LORA is"),
        ({"bias": "lora_only"}, "bias 'lora_only' is not supported; none is"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save ['lm_head'] is not supported"),
        ({"use_dora": True}, "use_dora is not supported"),
        ({"lora_bias": True}, "lora_bias is not supported"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is not supported"),
        ({"an_option_of_a_later_release": 1}, "an_option_of_a_later_release is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' moved a part of the base model"),
        ({"target_modules": None}, "target_modules names no layer"),
        ({"target_modules": 3}, "target_modules is 3 in place of"),
        ({"target_modules": "("}, "target_modules has '(', which is no regular expression"),
        ({"rank_pattern": {"(": 3}}, "rank_pattern has '(', which is no regular expression"),
        ({"rank_pattern": {"q": 0}}, "rank_pattern['q'] is 0 in place of a rank"),
        ({"rank_pattern": [3]}, "rank_pattern is [3] in place of an object"),
        ({"r": "8"}, "r is '8' in place of a rank"),
        ({"lora_alpha": None}, "lora_alpha is None in place of a number"),
        ({"layers_to_transform": ["1"]}, "layers_to_transform is ['1'] in place of indices"),
        ({"layers_to_transform": 1, "layers_pattern": "blocks"}, "layers_pattern 'blocks' fits no layer"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(config: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(**config)
    assert f"source: adapter_config.json: {problem}" in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff", b"{"])
def test_what_is_no_configuration_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"source: adapter_config\.json"):
        parse_peft_config(text, NAMES)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> NativeEngine:
    folder = tmp_path_factory.mktemp("model")
    save_tiny_llama(folder)
    options = NativeOptions(
        model=str(folder), block_count=4, thread_count=1, adapter_rank_limit=8, adapter_memory_bytes=60_000
    )
    return load_native_engine(options, lambda _: None)


def order(folder: Path) -> AdapterOrder:
    return AdapterOrder(source=str(folder))


Change = tuple[str, Any]
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("tensors", "config", "problem"),
    [
        ({f"{Q}.lora_A.weight": torch.zeros(4, 47)}, {}, "has shape (4, 47), the model and the rank mean (4, 48)"),
        ({f"{Q}.lora_B.weight": torch.zeros(48, 5)}, {}, "has shape (48, 5), the model and the rank mean (48, 4)"),
        ({f"{Q}.lora_A.weight": torch.zeros(4, 48, dtype=torch.int8)}, {}, "is torch.int8, and not floating-point"),
        (
            {f"{Q}.lora_magnitude_vector": torch.zeros(48)},
            {},
            "there is a tensor 'model.layers.0.self_attn.q_proj.lora_m",
        ),
        ({}, {"target_modules": ["q_proj"]}, "there is a tensor 'model.layers.0.mlp.down_proj.lora_A.weight'"),
        ({}, {"target_modules": [*EVERYWHERE, "lm_head"]}, "a product beside lm_head is not supported"),
        ({}, {"target_modules": ["embed_tokens"]}, "a product beside model.embed_tokens is not supported"),
        ({}, {"target_modules": ["c_attn"]}, "target_modules names no linear layer of the model"),
        ({}, {"r": 5}, "the model and the rank mean (5, 48)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    engine: NativeEngine, tmp_path: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any], problem: str
) -> None:
    save_lora(tmp_path)
    present = load_file(tmp_path / "adapter_model.safetensors")
    save_tensors(tmp_path, present | tensors, **config)
    with pytest.raises(InvalidRequest) as caught:
        engine.prepare_adapter(order(tmp_path))
    assert problem in str(caught.value)


def test_a_missing_tensor_and_a_broken_file_are_named(engine: NativeEngine, tmp_path: Path) -> None:
    save_lora(tmp_path)
    present = load_file(tmp_path / "adapter_model.safetensors")
    del present[f"{Q}.lora_B.weight"]
    save_tensors(tmp_path, present)
    with pytest.raises(
        InvalidRequest, match=r"there is no tensor 'model\.layers\.0\.self_attn\.q_proj\.lora_B\.weight'"
    ):
        engine.prepare_adapter(order(tmp_path))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"torch")
    with pytest.raises(InvalidRequest, match=r"source: adapter_model\.safetensors"):
        engine.prepare_adapter(order(tmp_path))


def test_room_for_adapters_is_bounded_by_rank_and_memory(engine: NativeEngine, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="has rank 9, and adapter_rank_limit is 8"):
        engine.prepare_adapter(order(save_lora(tmp_path / "high", rank=9)))
    loaded = engine.prepare_adapter(order(save_lora(tmp_path / "first", rank=8)))()
    assert 30_000 < loaded.size_bytes < 60_000
    with pytest.raises(AdaptersFull, match="unload one, or raise adapter_memory"):
        engine.prepare_adapter(order(save_lora(tmp_path / "second", rank=8, seed=2)))()
    engine.drop_adapter(loaded.digest)
    engine.prepare_adapter(order(tmp_path / "second"))()
