"""Reads the low-rank products of a PEFT folder, beside the layers that our decoders merge."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from headrace.contract.errors import InvalidRequest
from headrace.kernels.low_rank import LayerAdapter, LowRankLayer, LowRankPart, PartSizes
from headrace.shard.adapter_files import WEIGHTS_NAME, AdapterFiles
from headrace.shard.models.config import ModelConfig
from headrace.shard.peft_config import PeftConfig, parse_peft_config

_PREFIX = "base_model.model."
"""Where PEFT puts the model that it wraps."""

_QUERY_KEY_VALUE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_ATTENTION_OUTPUT = ("self_attn.o_proj",)
_GATED = ("mlp.gate_proj", "mlp.up_proj")
_DOWN = ("mlp.down_proj",)
_LINEARS = (*_QUERY_KEY_VALUE, *_ATTENTION_OUTPUT, *_GATED, *_DOWN)

_ELSEWHERE = ("model.embed_tokens", "lm_head")
"""Layers that an adapter can have a product beside, and ours cannot."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoraWeights:
    """An adapter's products, by layer of the decoder."""

    layers: tuple[LayerAdapter, ...]
    rank: int
    """The largest."""

    @property
    def size_bytes(self) -> int:
        """Memory of the weights."""
        return sum(layer.size_bytes for layer in self.layers)


class LoraReader:
    """Reads adapters for one model. Safe on any thread."""

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device, rank_limit: int) -> None:
        self._config = config
        self._dtype = dtype
        self._device = device
        self._rank_limit = rank_limit
        self.part_sizes = sizes = _part_sizes(config)
        """Outputs of the parts of the decoder's linear layers."""
        attention_size = sizes.query_key_value[0]
        self._shapes = {
            **{
                name: (config.hidden_size, size)
                for name, size in zip(_QUERY_KEY_VALUE, sizes.query_key_value, strict=True)
            },
            **dict.fromkeys(_ATTENTION_OUTPUT, (attention_size, config.hidden_size)),
            **dict.fromkeys(_GATED, (config.hidden_size, config.inner_size)),
            **dict.fromkeys(_DOWN, (config.inner_size, config.hidden_size)),
        }
        """Inputs and outputs of each linear layer."""

    def read(self, files: AdapterFiles) -> LoraWeights:
        """Returns an adapter's products.

        Raises:
            InvalidRequest: they do not fit the model, or the adapter has something that we cannot follow.
        """
        peft = parse_peft_config(files.config, _LINEARS)
        tensors = _load(files)
        prefixes = [f"model.layers.{index}" for index in range(self._config.layer_count)]
        self._check_names(peft, tensors, [f"{prefix}.{name}" for prefix in prefixes for name in _LINEARS])
        rank = max(tensor.shape[0] for name, tensor in tensors.items() if name.endswith("lora_A.weight"))
        return LoraWeights(layers=tuple(self._layer(peft, tensors, prefix) for prefix in prefixes), rank=rank)

    def _check_names(self, peft: PeftConfig, tensors: Mapping[str, torch.Tensor], layer_names: list[str]) -> None:
        for name in _ELSEWHERE:
            if peft.covers(name):
                raise _refusal(f"a product beside {name} is not supported")
        covered = [name for name in layer_names if peft.covers(name)]
        expected = {f"{name}.lora_{matrix}.weight" for name in covered for matrix in "AB"}
        if not expected:
            raise _refusal("target_modules names no linear layer of the model")
        if missing := sorted(expected - tensors.keys()):
            raise _refusal(f"there is no tensor {missing[0]!r}, which the configuration means")
        if unknown := sorted(tensors.keys() - expected):
            raise _refusal(f"there is a tensor {unknown[0]!r} that the model or the configuration does not know")

    def _layer(self, peft: PeftConfig, tensors: Mapping[str, torch.Tensor], prefix: str) -> LayerAdapter:
        def linear(names: tuple[str, ...]) -> LowRankLayer:
            parts = [self._part(peft, tensors, prefix, name) for name in names]
            return LowRankLayer.of(
                parts, in_feature_count=self._shapes[names[0]][0], dtype=self._dtype, device=self._device
            )

        return LayerAdapter(
            query_key_value=linear(_QUERY_KEY_VALUE),
            attention_output=linear(_ATTENTION_OUTPUT),
            gated=linear(_GATED),
            down=linear(_DOWN),
        )

    def _part(
        self, peft: PeftConfig, tensors: Mapping[str, torch.Tensor], prefix: str, name: str
    ) -> LowRankPart | None:
        path = f"{prefix}.{name}"
        if not peft.covers(path):
            return None
        rank = peft.rank_of(path)
        if rank > self._rank_limit:
            raise _refusal(f"{path} has rank {rank}, and adapter_rank_limit is {self._rank_limit}")
        in_count, out_count = self._shapes[name]
        down = _shaped(tensors, f"{path}.lora_A.weight", rank, in_count)
        up = _shaped(tensors, f"{path}.lora_B.weight", out_count, rank)
        # In float32, so that only the product of both is rounded to the model's type.
        return LowRankPart(down=down, up=up * peft.scale_of(path))


def _load(files: AdapterFiles) -> dict[str, torch.Tensor]:
    try:
        tensors = load(files.weights)
    except SafetensorError as error:
        raise InvalidRequest.of("source", f"{WEIGHTS_NAME}: {error}") from error
    return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}


def _shaped(tensors: Mapping[str, torch.Tensor], name: str, *shape: int) -> torch.Tensor:
    tensor = tensors[name]
    if tensor.shape != shape:
        raise _refusal(f"the tensor {name!r} has shape {tuple(tensor.shape)}, the model and the rank mean {shape}")
    if not tensor.is_floating_point():
        raise _refusal(f"the tensor {name!r} is {tensor.dtype}, and not floating-point")
    return tensor.to(torch.float32)


def _refusal(problem: str) -> InvalidRequest:
    return InvalidRequest.of("source", f"{WEIGHTS_NAME}: {problem}")


def _part_sizes(config: ModelConfig) -> PartSizes:
    """Returns the outputs of the parts of a decoder's linear layers."""
    query, kv = config.head_count * config.head_dim, config.kv_head_count * config.head_dim
    return PartSizes(
        query_key_value=(query, kv, kv),
        attention_output=(config.hidden_size,),
        gated=(config.inner_size, config.inner_size),
        down=(config.hidden_size,),
    )
