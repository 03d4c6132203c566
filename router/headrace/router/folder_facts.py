"""Reads what a model's folder, in the layout of the Hugging Face Hub, says of the model."""

from collections.abc import Mapping
from pathlib import Path

from headrace.contract.errors import StartupError
from headrace.router.model_facts import ModelFacts, read_json_object, token_ids_of

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")


def read_folder_facts(folder: Path) -> ModelFacts:
    """Reads config.json, generation_config.json, tokenizer.json, tokenizer_config.json, and chat templates.

    Only the first and the third must be there.

    Raises:
        StartupError: a file is missing or broken.
    """
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise StartupError(f"{folder} has no {name}, which every model needs")
    config = read_json_object(folder / "config.json")
    # Models that also see or hear keep their language model's settings one level down.
    nested = config.get("text_config")
    text_config = {**config, **nested} if isinstance(nested, dict) else config
    generation = read_json_object(folder / "generation_config.json")
    tokenizer_config = read_json_object(folder / "tokenizer_config.json")
    special_token_ids = _special_token_ids(read_json_object(folder / "tokenizer.json"))
    special_tokens = _special_tokens(tokenizer_config)
    templates = _chat_templates(folder, tokenizer_config)
    return ModelFacts(
        architecture=_architecture(config),
        context_token_count=_whole_number(folder, text_config, _CONTEXT_KEYS),
        vocabulary_size=_whole_number(folder, text_config, ("vocab_size",)),
        end_of_sequence_token_ids=_end_ids(generation, text_config, special_tokens, special_token_ids),
        special_tokens=special_tokens,
        special_token_ids=special_token_ids,
        chat_template=templates.get("default"),
        tool_chat_template=templates.get("tool_use"),
        generation=generation,
        generation_origin=str(folder / "generation_config.json"),
    )


def _architecture(config: Mapping[str, object]) -> str:
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures:
        return str(architectures[0])
    return str(config.get("model_type", "unknown"))


def _whole_number(folder: Path, config: Mapping[str, object], keys: tuple[str, ...]) -> int:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    raise StartupError(f"{folder / 'config.json'} has no positive {' or '.join(keys)}")


def _end_ids(
    generation: Mapping[str, object],
    config: Mapping[str, object],
    special_tokens: Mapping[str, str],
    special_token_ids: Mapping[str, int],
) -> tuple[int, ...]:
    """Returns what the most specific file declares."""
    for settings in (generation, config):
        ids = token_ids_of(settings.get("eos_token_id"))
        if ids:
            return ids
    token_id = special_token_ids.get(special_tokens.get("eos_token", ""))
    return () if token_id is None else (token_id,)


def _special_tokens(tokenizer_config: Mapping[str, object]) -> dict[str, str]:
    """Returns the entries such as `bos_token`: a text, or an object with its text as `content`."""
    special_tokens: dict[str, str] = {}
    for name, value in tokenizer_config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            special_tokens[name] = content
    return special_tokens


def _special_token_ids(tokenizer: Mapping[str, object]) -> dict[str, int]:
    added = tokenizer.get("added_tokens")
    return {
        str(token["content"]): token["id"]
        for token in (added if isinstance(added, list) else [])
        if isinstance(token, dict) and token.get("special") is True and isinstance(token.get("id"), int)
    }


def _chat_templates(folder: Path, tokenizer_config: Mapping[str, object]) -> dict[str, str]:
    """Returns the templates by name: those in files of their own, else the entry in tokenizer_config.json."""
    entry = tokenizer_config.get("chat_template")
    if isinstance(entry, list):
        named = {each.get("name"): each.get("template") for each in entry if isinstance(each, dict)}
    else:
        named = {"default": entry}
    found = {str(name): source for name, source in named.items() if isinstance(source, str)}
    others = folder / "additional_chat_templates"
    for path in (folder / "chat_template.jinja", *sorted(others.glob("*.jinja"))):
        if path.is_file():
            try:
                found["default" if path.parent == folder else path.stem] = path.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise StartupError(f"cannot read {path}: {error}") from error
    return found
