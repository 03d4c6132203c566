"""Reads what a GGUF file says of its model."""

from collections.abc import Mapping
from pathlib import Path

from headrace.contract.errors import StartupError
from headrace.router.gguf_metadata import GgufValue, read_gguf_metadata
from headrace.router.gguf_tokenizer import TokenType
from headrace.router.model_facts import ModelFacts, token_ids_of

_TOKEN_NAMES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # spelled so in the format
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}

_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")

_SAMPLING_KEYS = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
"""Keys below `general.sampling.`, by the names of generation_config.json."""


def read_gguf_facts(path: Path) -> ModelFacts:
    """Reads the header of a GGUF file.

    Raises:
        StartupError: it cannot be read or lacks what every model has.
    """
    metadata = read_gguf_metadata(path)
    architecture = metadata.get("general.architecture")
    tokens = metadata.get("tokenizer.ggml.tokens")
    context_token_count = metadata.get(f"{architecture}.context_length")
    if not isinstance(architecture, str) or not isinstance(tokens, tuple) or not isinstance(context_token_count, int):
        raise StartupError(
            f"{path} lacks general.architecture, tokenizer.ggml.tokens or the context length: is it a language model?"
        )
    template, tool_template = (metadata.get(f"tokenizer.chat_template{suffix}") for suffix in ("", ".tool_use"))
    sampling = {name: metadata.get(f"general.sampling.{key}") for name, key in _SAMPLING_KEYS.items()}
    return ModelFacts(
        architecture=architecture,
        context_token_count=context_token_count,
        vocabulary_size=len(tokens),
        end_of_sequence_token_ids=_end_ids(metadata),
        special_tokens=_special_tokens(metadata, tokens),
        special_token_ids=_special_token_ids(metadata, tokens),
        chat_template=template if isinstance(template, str) else None,
        tool_chat_template=tool_template if isinstance(tool_template, str) else None,
        generation={name: value for name, value in sampling.items() if value is not None},
        generation_origin=str(path),
    )


def _end_ids(metadata: Mapping[str, GgufValue]) -> tuple[int, ...]:
    ids = [token_id for key in _END_KEYS for token_id in token_ids_of(metadata.get(f"tokenizer.ggml.{key}"))]
    return tuple(dict.fromkeys(ids))


def _special_tokens(metadata: Mapping[str, GgufValue], tokens: tuple[GgufValue, ...]) -> dict[str, str]:
    special_tokens: dict[str, str] = {}
    for name, key in _TOKEN_NAMES.items():
        for token_id in token_ids_of(metadata.get(f"tokenizer.ggml.{key}")):
            if token_id < len(tokens):
                special_tokens[name] = str(tokens[token_id])
    return special_tokens


def _special_token_ids(metadata: Mapping[str, GgufValue], tokens: tuple[GgufValue, ...]) -> dict[str, int]:
    types = metadata.get("tokenizer.ggml.token_type")
    if not isinstance(types, tuple):
        return {}
    return {
        str(token): token_id
        for token_id, (token, token_type) in enumerate(zip(tokens, types, strict=False))
        if token_type == TokenType.CONTROL
    }
