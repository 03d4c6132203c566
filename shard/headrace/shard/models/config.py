"""What a model is made of, whatever file it came from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from headrace.contract.errors import StartupError
from headrace.shard.models.rotary import LinearScaling, Llama3Scaling, RotaryScaling

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
"""The families whose decoder models/llama.py is."""

JsonObject = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of a decoder."""

    architecture: str
    """As Transformers names it."""
    vocabulary_size: int
    hidden_size: int
    layer_count: int
    head_count: int
    kv_head_count: int
    head_dim: int
    inner_size: int
    """Width of the gated MLP."""
    norm_epsilon: float
    context_token_count: int
    """Longest sequence that the model was made for."""
    rotary_base: float
    rotary_scaling: RotaryScaling | None
    ties_embeddings: bool
    """Whether the output head is the embedding."""
    end_of_sequence_token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.head_count % self.kv_head_count:
            raise StartupError(f"{self.head_count} attention heads cannot share {self.kv_head_count} key-value heads")
        if self.head_dim % 2:
            raise StartupError(f"an odd head size of {self.head_dim} cannot be rotated")


def parse_config(config: JsonObject, generation_config: JsonObject) -> ModelConfig:
    """Reads a folder's config.json and generation_config.json.

    Raises:
        StartupError: the architecture or an option of it is not supported, or a value is missing.
    """
    architecture = _architecture(config)
    head_count = _integer(config, "num_attention_heads")
    hidden_size = _integer(config, "hidden_size")
    if config.get("hidden_act", "silu") != "silu":
        raise StartupError(f"config.json: hidden_act {config['hidden_act']!r} is not supported; silu is")
    if config.get("quantization_config"):
        raise StartupError("config.json: quantization_config is not supported; use unquantized weights or a GGUF file")
    rotary = _rotary_parameters(config)
    return ModelConfig(
        architecture=architecture,
        vocabulary_size=_integer(config, "vocab_size"),
        hidden_size=hidden_size,
        layer_count=_integer(config, "num_hidden_layers"),
        head_count=head_count,
        kv_head_count=_integer(config, "num_key_value_heads", head_count),
        head_dim=_integer(config, "head_dim", hidden_size // head_count),
        inner_size=_integer(config, "intermediate_size"),
        norm_epsilon=_number(config, "rms_norm_eps", 1e-6),
        context_token_count=_context(config),
        rotary_base=_number(rotary, "rope_theta", 10_000.0),
        rotary_scaling=parse_rotary_scaling(rotary),
        ties_embeddings=bool(config.get("tie_word_embeddings", False)),
        end_of_sequence_token_ids=_end_ids(config, generation_config),
    )


def parse_rotary_scaling(rotary: JsonObject) -> RotaryScaling | None:
    """Reads how rotary frequencies are stretched.

    Raises:
        StartupError: the way is not supported.
    """
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    match kind:
        case "default":
            return None
        case "linear":
            return LinearScaling(factor=_number(rotary, "factor"))
        case "llama3":
            return Llama3Scaling(
                factor=_number(rotary, "factor"),
                low_frequency_factor=_number(rotary, "low_freq_factor"),
                high_frequency_factor=_number(rotary, "high_freq_factor"),
                original_context_token_count=_integer(rotary, "original_max_position_embeddings"),
            )
        case _:
            raise StartupError(f"rope scaling {kind!r} is not supported; default, linear and llama3 are")


def _architecture(config: JsonObject) -> str:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if name not in ARCHITECTURES:
        raise StartupError(f"architecture {name!r} is not supported; supported are: {', '.join(ARCHITECTURES)}")
    return cast("str", name)


def _rotary_parameters(config: JsonObject) -> JsonObject:
    """Joins the two ways of writing them: one object, or a base beside an optional scaling."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise StartupError("config.json: the rope parameters are not an object")
    if config.get("partial_rotary_factor", parameters.get("partial_rotary_factor", 1.0)) != 1.0:
        raise StartupError("config.json: partial_rotary_factor is not supported")
    return {key: config[key] for key in ("rope_theta",) if key in config} | parameters


def _context(config: JsonObject) -> int:
    """Returns the longest sequence: no longer than a sliding window, within which all attention is full."""
    context = _integer(config, "max_position_embeddings")
    if config.get("use_sliding_window", True) and config.get("sliding_window") is not None:
        return min(context, _integer(config, "sliding_window"))
    return context


def _end_ids(config: JsonObject, generation_config: JsonObject) -> tuple[int, ...]:
    ids = generation_config.get("eos_token_id", config.get("eos_token_id"))
    if ids is None:
        return ()
    listed = ids if isinstance(ids, list) else [ids]
    if not all(isinstance(token_id, int) for token_id in listed):
        raise StartupError(f"eos_token_id {ids!r} is neither an integer nor a list of integers")
    return tuple(listed)


def _integer(config: JsonObject, key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int):
        raise StartupError(f"config.json: {key} is {value!r} in place of an integer")
    return value


def _number(config: JsonObject, key: str, default: float | None = None) -> float:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int | float):
        raise StartupError(f"config.json: {key} is {value!r} in place of a number")
    return float(value)
