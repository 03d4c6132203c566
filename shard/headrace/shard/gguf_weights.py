"""Weights from a GGUF file: names and layouts translated, quantized tensors turned into float32."""

import sys
from collections.abc import Mapping
from pathlib import Path

import gguf
import torch

from headrace.contract.errors import StartupError
from headrace.kernels.quantization import BlockWeight
from headrace.shard.gguf_blocks import unpack
from headrace.shard.models.config import ModelConfig
from headrace.shard.models.rotary import DivisorScaling, LinearScaling, RotaryScaling
from headrace.shard.weights import most_used_type

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
_TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROTARY_DIVISORS = "rope_freqs.weight"
_INTERLEAVED_ARCHITECTURE = "llama"
"""Its files hold the rows of query and key weights in another order; see _regroup_heads."""


class GgufSource:
    """A GGUF file."""

    def __init__(self, path: Path) -> None:
        """Maps the file into memory and reads its metadata.

        Raises:
            StartupError: the file is missing or malformed, or holds something that is not supported.
        """
        try:
            self._reader = gguf.GGUFReader(path)
        except (OSError, ValueError) as error:
            raise StartupError(f"{path}: {error}") from error
        self._prefix = self._text("general.architecture")
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._names = {_translate(name): name for name in self._tensors if name != _ROTARY_DIVISORS}
        self._config = self._read_config()

    @property
    def config(self) -> ModelConfig:
        """What the model is made of."""
        return self._config

    @property
    def sizes_bytes(self) -> Mapping[str, int]:
        """Every tensor's name and its size in the file."""
        return {name: int(self._tensors[stored].n_bytes) for name, stored in self._names.items()}

    @property
    def stored_type(self) -> str:
        """The type that takes most of the bytes."""
        return most_used_type((tensor.tensor_type.name, int(tensor.n_bytes)) for tensor in self._tensors.values())

    def read(self, name: str) -> torch.Tensor:
        """Returns a tensor as float32."""
        tensor = self._dequantize(self._names[name])
        if self._prefix == _INTERLEAVED_ARCHITECTURE and ".q_proj." in name:
            return _regroup_heads(tensor, self._config.head_count)
        if self._prefix == _INTERLEAVED_ARCHITECTURE and ".k_proj." in name:
            return _regroup_heads(tensor, self._config.kv_head_count)
        return tensor

    def read_blocks(self, name: str) -> BlockWeight | None:
        """Returns a weight in its blocks, for the types of blocks that need no arithmetic to be understood."""
        tensor = self._tensors[self._names[name]]
        weight = unpack(tensor.data, tensor.tensor_type)
        if weight is None or self._prefix != _INTERLEAVED_ARCHITECTURE:
            return weight
        if ".q_proj." in name:
            return _regroup_blocks(weight, self._config.head_count)
        return _regroup_blocks(weight, self._config.kv_head_count) if ".k_proj." in name else weight

    def _dequantize(self, stored_name: str) -> torch.Tensor:
        tensor = self._tensors[stored_name]
        try:
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise StartupError(f"the tensor {stored_name!r} is of type {kind}, which is not supported") from error
        # Unquantized tensors come as a view of the read-only file.
        return torch.from_numpy(values.copy() if not values.flags.writeable else values)

    def _read_config(self) -> ModelConfig:
        architecture = _ARCHITECTURES.get(self._prefix)
        if architecture is None:
            supported = ", ".join(_ARCHITECTURES)
            raise StartupError(f"GGUF architecture {self._prefix!r} is not supported; supported are: {supported}")
        head_count = self._integer("attention.head_count")
        hidden_size = self._integer("embedding_length")
        head_dim = self._integer("attention.key_length", hidden_size // head_count)
        for key in ("attention.value_length", "rope.dimension_count"):
            if self._integer(key, head_dim) != head_dim:
                raise StartupError(f"{self._prefix}.{key} is not the head size of {head_dim}, which is not supported")
        if "token_embd.weight" not in self._tensors:
            raise StartupError("the model's weights have no tensor 'token_embd.weight'")
        return ModelConfig(
            architecture=architecture,
            # A file keeps the sizes innermost first.
            vocabulary_size=int(self._tensors["token_embd.weight"].shape[1]),
            hidden_size=hidden_size,
            layer_count=self._integer("block_count"),
            head_count=head_count,
            kv_head_count=self._integer("attention.head_count_kv", head_count),
            head_dim=head_dim,
            inner_size=self._integer("feed_forward_length"),
            norm_epsilon=self._number("attention.layer_norm_rms_epsilon"),
            # Within a sliding window all attention is full.
            context_token_count=min(
                self._integer("context_length"), self._integer("attention.sliding_window", 0) or sys.maxsize
            ),
            rotary_base=self._number("rope.freq_base", 10_000.0),
            rotary_scaling=self._rotary_scaling(),
            ties_embeddings="output.weight" not in self._tensors,
            end_of_sequence_token_ids=self._end_ids(),
        )

    def _rotary_scaling(self) -> RotaryScaling | None:
        if _ROTARY_DIVISORS in self._tensors:
            return DivisorScaling(divisors=tuple(self._dequantize(_ROTARY_DIVISORS).tolist()))
        kind = self._value(f"{self._prefix}.rope.scaling.type")
        if self._value(f"{self._prefix}.rope.scale_linear") is not None:
            return LinearScaling(factor=self._number("rope.scale_linear"))
        if kind in (None, "none"):
            return None
        if kind == "linear":
            return LinearScaling(factor=self._number("rope.scaling.factor"))
        raise StartupError(f"rope scaling {kind!r} is not supported; none, linear and stored divisors are")

    def _end_ids(self) -> tuple[int, ...]:
        """Returns the ids of the end of a text and, where the model has one, of the end of a turn."""
        values = (self._value(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot"))
        return tuple(dict.fromkeys(value for value in values if isinstance(value, int)))

    def _value(self, key: str) -> object:
        field = self._reader.get_field(key)
        return None if field is None else field.contents()

    def _text(self, key: str) -> str:
        value = self._value(key)
        if not isinstance(value, str):
            raise StartupError(f"the GGUF file has no text {key}")
        return value

    def _integer(self, key: str, default: int | None = None) -> int:
        value = self._value(f"{self._prefix}.{key}")
        if value is None and default is not None:
            return default
        if not isinstance(value, int):
            raise StartupError(f"{self._prefix}.{key} is {value!r} in place of an integer")
        return value

    def _number(self, key: str, default: float | None = None) -> float:
        value = self._value(f"{self._prefix}.{key}")
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float):
            raise StartupError(f"{self._prefix}.{key} is {value!r} in place of a number")
        return float(value)


def _translate(stored_name: str) -> str:
    stem, _, kind = stored_name.rpartition(".")
    if kind in ("weight", "bias"):
        if stem in _TOP_NAMES:
            return f"{_TOP_NAMES[stem]}.{kind}"
        parts = stem.split(".")
        if len(parts) == 3 and parts[0] == "blk" and parts[1].isdecimal() and parts[2] in _LAYER_NAMES:
            return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.{kind}"
    raise StartupError(f"the GGUF file has a tensor {stored_name!r} that no supported model knows")


def _regroup_heads(tensor: torch.Tensor, head_count: int) -> torch.Tensor:
    """Undoes the order of rows that rotates neighbours: first and second halves of a head lie interleaved.

    Args:
        tensor: [head * head_dim, ...]
        head_count: Heads in it.
    """
    pairs = tensor.view(head_count, -1, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)


def _regroup_blocks(weight: BlockWeight, head_count: int) -> BlockWeight:
    """Does the same for a weight in blocks."""
    return BlockWeight(
        values=_regroup_heads(weight.values, head_count),
        scales=_regroup_heads(weight.scales, head_count),
        minima=None if weight.minima is None else _regroup_heads(weight.minima, head_count),
    )
