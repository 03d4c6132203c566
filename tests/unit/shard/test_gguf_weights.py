"""GGUF files of every supported kind hold the weights that they were made from."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tiny_llama import save_model, tiny_llama_config
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from headrace.contract.errors import StartupError
from headrace.kernels.quantization import expand
from headrace.shard.gguf_weights import GgufSource
from headrace.shard.models.rotary import DivisorScaling, LinearScaling
from headrace.shard.weights import WeightReader

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def stored_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem in NAMES:
        return f"{NAMES[stem]}.{kind}"
    index, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{index}.{NAMES[part]}.{kind}"


def interleave(tensor: torch.Tensor, head_count: int) -> torch.Tensor:
    """Orders the rows of each head so that a rotation turns neighbours: 0, half, 1, half + 1, ..."""
    heads = tensor.view(head_count, -1, *tensor.shape[1:])
    half = heads.shape[1] // 2
    order = [index for pair in zip(range(half), range(half, 2 * half), strict=True) for index in pair]
    return heads[:, order].reshape(tensor.shape)


Change = Callable[[gguf.GGUFWriter], None]


def write(path: Path, model: PreTrainedModel, architecture: str, change: Change = lambda _: None) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(777.0)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(5)
    for name, tensor in model.state_dict().items():
        if architecture == "llama" and ".q_proj." in name:
            tensor = interleave(tensor, config.num_attention_heads)  # noqa: PLW2901
        if architecture == "llama" and ".k_proj." in name:
            tensor = interleave(tensor, config.num_key_value_heads)  # noqa: PLW2901
        writer.add_tensor(stored_name(name), tensor.numpy())
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    config = tiny_llama_config(attention_bias=True)
    return save_model(tmp_path_factory.mktemp("llama"), LlamaForCausalLM, config)


def check_weights(source: GgufSource, model: PreTrainedModel) -> None:
    expected = model.state_dict()
    assert set(source.sizes_bytes) == set(expected)
    for name, tensor in expected.items():
        assert source.sizes_bytes[name] == tensor.nbytes
        assert torch.equal(source.read(name), tensor), name


def test_llama(tmp_path: Path, llama: PreTrainedModel) -> None:
    write(tmp_path / "m.gguf", llama, "llama")
    source = GgufSource(tmp_path / "m.gguf")
    check_weights(source, llama)
    config = source.config
    assert config.architecture == "LlamaForCausalLM"
    assert (config.vocabulary_size, config.head_dim, config.context_token_count) == (211, 8, 512)
    assert (config.rotary_base, config.rotary_scaling) == (777.0, None)
    assert not config.ties_embeddings
    assert config.end_of_sequence_token_ids == (2, 5)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_weights_in_blocks_have_the_same_order_of_rows(
    tmp_path: Path, llama: PreTrainedModel, architecture: str
) -> None:
    width = 32 * llama.config.num_attention_heads

    def add(writer: gguf.GGUFWriter) -> None:
        for name in ("attn_q", "attn_k", "ffn_down"):
            values = np.random.default_rng(len(name)).normal(size=(width, 64)).astype(np.float32)
            packed = gguf.quantize(values, gguf.GGMLQuantizationType.Q4_1)
            writer.add_tensor(f"blk.9.{name}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)

    write(tmp_path / "m.gguf", llama, architecture, add)
    source = GgufSource(tmp_path / "m.gguf")
    for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"):
        weight = source.read_blocks(f"model.layers.9.{name}.weight")
        assert weight is not None
        assert torch.equal(expand(weight, torch.float32), source.read(f"model.layers.9.{name}.weight"))
    assert source.read_blocks("model.layers.0.mlp.down_proj.weight") is None
    for device, is_kept in (("cpu", True), ("meta", False)):
        reader = WeightReader(
            source, dtype=torch.float32, device=torch.device(device), progress=lambda _: None, keeps_blocks=True
        )
        blocks = reader.blocks("model.layers.9.mlp.{}_proj.weight", {"down": width}, 64)
        assert (blocks is not None) is is_kept
        assert reader.has("model.layers.9.mlp.down_proj.weight") is not is_kept


def test_qwen2_keeps_its_order_of_rows(tmp_path: Path) -> None:
    shape = {"vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1}
    config = Qwen2Config(**shape, num_attention_heads=3, num_key_value_heads=1)
    model = save_model(tmp_path, Qwen2ForCausalLM, config)
    write(tmp_path / "m.gguf", model, "qwen2")
    source = GgufSource(tmp_path / "m.gguf")
    check_weights(source, model)
    assert source.config.architecture == "Qwen2ForCausalLM"


def test_rotary_divisors(tmp_path: Path, llama: PreTrainedModel) -> None:
    divisors = torch.tensor([1.0, 1.0, 2.5, 8.0])
    write(tmp_path / "m.gguf", llama, "llama", lambda w: w.add_tensor("rope_freqs.weight", divisors.numpy()))
    source = GgufSource(tmp_path / "m.gguf")
    assert source.config.rotary_scaling == DivisorScaling(divisors=(1.0, 1.0, 2.5, 8.0))
    check_weights(source, llama)


@pytest.mark.parametrize("is_old", [False, True])
def test_linear_scaling(tmp_path: Path, llama: PreTrainedModel, is_old: bool) -> None:
    def scale(writer: gguf.GGUFWriter) -> None:
        if is_old:
            writer.add_float32("llama.rope.scale_linear", 4.0)
        else:
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(4.0)

    write(tmp_path / "m.gguf", llama, "llama", scale)
    assert GgufSource(tmp_path / "m.gguf").config.rotary_scaling == LinearScaling(factor=4.0)


def test_a_sliding_window_bounds_the_context(tmp_path: Path, llama: PreTrainedModel) -> None:
    write(tmp_path / "m.gguf", llama, "llama", lambda w: w.add_sliding_window(90))
    assert GgufSource(tmp_path / "m.gguf").config.context_token_count == 90


def test_half_precision_becomes_float32(tmp_path: Path, llama: PreTrainedModel) -> None:
    write(tmp_path / "m.gguf", llama.half(), "llama")
    source = GgufSource(tmp_path / "m.gguf")
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(source.read(name), llama.state_dict()[name].float())
    llama.float()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), "rope scaling 'yarn'"),
        (lambda w: w.add_rope_dimension_count(4), "llama.rope.dimension_count is not the head size of 8"),
        (lambda w: w.add_value_length(16), "llama.attention.value_length is not the head size of 8"),
        (
            lambda w: w.add_tensor("blk.0.ffn_gate_inp.weight", torch.zeros(4, 4).numpy()),
            "'blk.0.ffn_gate_inp.weight' that no supported model knows",
        ),
        (lambda w: w.add_tensor("stray", torch.zeros(4).numpy()), "'stray' that no supported model knows"),
    ],
)
def test_what_cannot_run_is_named(tmp_path: Path, llama: PreTrainedModel, change: Change, message: str) -> None:
    write(tmp_path / "m.gguf", llama, "llama", change)
    with pytest.raises(StartupError, match=message):
        GgufSource(tmp_path / "m.gguf")


def test_an_unknown_architecture_is_named(tmp_path: Path, llama: PreTrainedModel) -> None:
    write(tmp_path / "m.gguf", llama, "mamba")
    with pytest.raises(StartupError, match="'mamba' is not supported; supported are: llama, qwen2"):
        GgufSource(tmp_path / "m.gguf")


def test_missing_metadata_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("token_embd.weight", torch.zeros(8, 4).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(StartupError, match=r"llama.attention.head_count is None"):
        GgufSource(tmp_path / "m.gguf")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGML" + bytes(60))
    with pytest.raises(StartupError, match=r"m.gguf: "):
        GgufSource(tmp_path / "m.gguf")
    with pytest.raises(StartupError, match=r"none.gguf"):
        GgufSource(tmp_path / "none.gguf")
