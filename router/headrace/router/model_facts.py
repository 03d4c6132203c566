"""What a model's files say of it, the same for every format."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace.contract.errors import StartupError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What was read, nothing inferred."""

    architecture: str
    context_token_count: int
    vocabulary_size: int
    """Rows of the embedding."""
    end_of_sequence_token_ids: tuple[int, ...]
    """As declared, the main one first."""
    special_tokens: Mapping[str, str]
    """By the name that templates use, such as `bos_token`."""
    special_token_ids: Mapping[str, int]
    """Ids of all special tokens, by text."""
    chat_template: str | None
    tool_chat_template: str | None
    """The one for conversations with tools, of a model that has one; by convention it is named `tool_use`."""
    generation: Mapping[str, object]
    """Generation defaults, by the names of generation_config.json."""
    generation_origin: str
    """The file that they are from, for messages."""


def read_json_object(path: Path) -> dict[str, object]:
    """Returns the object in a JSON file; empty if the file does not exist.

    Raises:
        StartupError: the file cannot be read or holds something else.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise StartupError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise StartupError(f"{path} must hold a JSON object")
    return value


def token_ids_of(value: object) -> tuple[int, ...]:
    """Returns the ids in a setting that is one id, a list of them, or missing."""
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(item for item in values if isinstance(item, int) and not isinstance(item, bool) and item >= 0)
