"""What a PEFT folder's adapter_config.json says of its LoRA, as far as we can follow it."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

from headrace.contract.errors import InvalidRequest
from headrace.shard.adapter_files import CONFIG_NAME

Number = TypeVar("Number", int, float)

_FOLLOWED = {
    "alpha_pattern", "bias", "exclude_modules", "init_lora_weights", "layers_pattern", "layers_to_transform",
    "lora_alpha", "peft_type", "r", "rank_pattern", "target_modules", "use_rslora",
}  # fmt: skip
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "inference_mode",
    "loftq_config", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "task_type",
}  # fmt: skip
"""Options that say how an adapter was trained, or how PEFT would run it."""

_HARMLESS_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base model as it was; the others move a part of it into the adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftConfig:
    """Which linear layers have a low-rank product beside them, and how large it is."""

    rank: int
    alpha: float
    uses_rslora: bool
    """Whether the product is scaled by alpha / sqrt(rank) in place of alpha / rank."""
    targets: str | tuple[str, ...]
    """A pattern that the whole name of a layer fits, or names that it ends with."""
    excluded: str | tuple[str, ...] = ()
    layer_indices: frozenset[int] | None = None
    """Layers of the decoder that take part; None for all."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def covers(self, name: str) -> bool:
        """Returns whether a layer, such as `model.layers.0.mlp.up_proj`, has a low-rank product."""
        if _fits(self.excluded, name) or not _fits(self.targets, name):
            return False
        if self.layer_indices is None:
            return True
        index = re.search(r"\.layers\.(\d+)\.", name)
        return index is not None and int(index[1]) in self.layer_indices

    def rank_of(self, name: str) -> int:
        """Returns the rank of a layer's product."""
        return _look_up(self.rank_pattern, name, self.rank)

    def scale_of(self, name: str) -> float:
        """Returns what a layer's product is multiplied with."""
        rank = self.rank_of(name)
        alpha = _look_up(self.alpha_pattern, name, self.alpha)
        return alpha / math.sqrt(rank) if self.uses_rslora else alpha / rank


def parse_peft_config(text: bytes, layer_names: Sequence[str]) -> PeftConfig:
    """Reads the text of an adapter_config.json.

    Args:
        text: The JSON.
        layer_names: The linear layers that `all-linear` stands for.

    Raises:
        InvalidRequest: it is no LoRA, or has an option that we cannot follow; names the option.
    """
    try:
        config = json.loads(text)
    except ValueError as error:  # wrong UTF-8 included
        raise _refusal(f"is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise _refusal("does not hold an object")
    _check_options(config)
    targets = _patterns(config, "target_modules")
    if not targets:
        raise _refusal("target_modules names no layer")
    if targets == "all-linear":
        targets = tuple(dict.fromkeys(name.rpartition(".")[2] for name in layer_names))
    return PeftConfig(
        rank=_rank(config.get("r"), "r"),
        alpha=_number(config.get("lora_alpha"), "lora_alpha"),
        uses_rslora=bool(config.get("use_rslora", False)),
        targets=targets,
        excluded=_patterns(config, "exclude_modules"),
        layer_indices=_layer_indices(config),
        rank_pattern={key: _rank(value, f"rank_pattern[{key!r}]") for key, value in _pattern(config, "rank_pattern")},
        alpha_pattern={
            key: _number(value, f"alpha_pattern[{key!r}]") for key, value in _pattern(config, "alpha_pattern")
        },
    )


def _check_options(config: Mapping[str, object]) -> None:
    if config.get("peft_type") != "LORA":
        raise _refusal(f"peft_type {config.get('peft_type')!r} is not supported; LORA is")
    if config.get("bias", "none") != "none":
        raise _refusal(f"bias {config['bias']!r} is not supported; none is")
    if config.get("init_lora_weights", True) not in _HARMLESS_BEGINNINGS:
        raise _refusal(
            f"init_lora_weights {config['init_lora_weights']!r} moved a part of the base model into the adapter;"
            " save it as an adapter of the unchanged model"
        )
    if config.get("modules_to_save"):
        raise _refusal(
            f"modules_to_save {config['modules_to_save']!r} is not supported: whole layers are not exchanged"
        )
    # NOTE: also options of a PEFT that is newer than this code; such a one may be left at what says "off".
    for name in sorted(config.keys() - _FOLLOWED - _WITHOUT_EFFECT - {"modules_to_save"}):
        if config[name]:
            raise _refusal(f"{name} is not supported")


def _patterns(config: Mapping[str, object], name: str) -> str | tuple[str, ...]:
    """Returns a pattern, checked, or a list of names."""
    value = config.get(name) or ()
    if isinstance(value, str):
        _compile(value, name)
        return value
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise _refusal(f"{name} is {value!r} in place of a pattern or a list of names")
    return tuple(value)


def _pattern(config: Mapping[str, object], name: str) -> list[tuple[str, object]]:
    value = config.get(name) or {}
    if not isinstance(value, dict):
        raise _refusal(f"{name} is {value!r} in place of an object")
    for key in value:
        _compile(key, name)
    return list(value.items())


def _compile(pattern: str, name: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise _refusal(f"{name} has {pattern!r}, which is no regular expression: {error}") from error


def _layer_indices(config: Mapping[str, object]) -> frozenset[int] | None:
    value = config.get("layers_to_transform")
    if value is None:
        return None
    listed = value if isinstance(value, list) else [value]
    if not all(isinstance(index, int) for index in listed):
        raise _refusal(f"layers_to_transform is {value!r} in place of indices")
    if config.get("layers_pattern") not in (None, [], "layers", ["layers"]):
        raise _refusal(f"layers_pattern {config['layers_pattern']!r} fits no layer of the model; layers does")
    return frozenset(cast("list[int]", listed))


def _rank(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _refusal(f"{name} is {value!r} in place of a rank of at least 1")
    return value


def _number(value: object, name: str) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise _refusal(f"{name} is {value!r} in place of a number")
    return float(value)


def _fits(patterns: str | tuple[str, ...], name: str) -> bool:
    if isinstance(patterns, str):
        return re.fullmatch(patterns, name) is not None
    return any(name == pattern or name.endswith(f".{pattern}") for pattern in patterns)


def _look_up(values: Mapping[str, Number], name: str, default: Number) -> Number:
    """Returns the value of the first pattern that the end of a name fits, from the beginning of a part of it."""
    return next((value for key, value in values.items() if re.fullmatch(rf"(.*\.)?({key})", name)), default)


def _refusal(problem: str) -> InvalidRequest:
    return InvalidRequest.of("source", f"{CONFIG_NAME}: {problem}")
