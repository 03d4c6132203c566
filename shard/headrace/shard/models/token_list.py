"""The tokens of a model's vocabulary as its files spell them, to tell whether two models speak in the same tokens."""

import json
from itertools import count
from pathlib import Path

from gguf import GGUFReader

from headrace.contract.errors import StartupError


def require_same_tokens(path: Path, other: Path) -> None:
    """Checks that two models give the same tokens the same ids, as far as both have them.

    Raises:
        StartupError: they do not, or the files do not tell.
    """
    tokens, others = read_tokens(path), read_tokens(other)
    for token_id in sorted(tokens.keys() & others.keys()):
        if tokens[token_id] != others[token_id]:
            raise StartupError(
                f"{other} has another tokenizer than {path}: token {token_id} is {others[token_id]!r}"
                f" and not {tokens[token_id]!r}"
            )
    if missing := sorted(tokens.keys() ^ others.keys())[:1]:
        size = min(len(tokens), len(others))
        # Models of one family differ in how far the vocabulary is padded; a gap before that is another matter.
        if missing[0] < size:
            raise StartupError(f"{other} has another tokenizer than {path}: one of them has no token {missing[0]}")


def read_tokens(path: Path) -> dict[int, str]:
    """Returns the tokens of a GGUF file or of a folder with a tokenizer.json, by id.

    Raises:
        StartupError: there is no vocabulary.
    """
    if not path.is_dir():
        field = GGUFReader(path).get_field("tokenizer.ggml.tokens")
        if field is None:
            raise StartupError(f"{path} lacks tokenizer.ggml.tokens")
        return dict(zip(count(), map(str, field.contents()), strict=False))
    file = path / "tokenizer.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"]
        added = {entry["id"]: entry["content"] for entry in content.get("added_tokens", [])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StartupError(f"{file} does not tell its vocabulary: {error!r}") from error
    if isinstance(vocabulary, dict):
        return {token_id: token for token, token_id in vocabulary.items()} | added
    return {token_id: token for token_id, (token, _) in enumerate(vocabulary)} | added
