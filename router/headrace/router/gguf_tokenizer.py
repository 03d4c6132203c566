"""Builds the tokenizer that a GGUF file describes in its metadata.

The result equals the tokenizer.json that the model was published with, as far as
the file tells: GGUF names the pre-tokenizer and keeps the rest.
"""

from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from headrace.contract.errors import StartupError
from headrace.router.gguf_metadata import GgufValue
from headrace.router.gguf_pre_tokenizers import PRE_TOKENIZATIONS

_SPACE = "\u2581"
"""How SentencePiece writes a space."""


class TokenType(IntEnum):
    """Values of `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def build_gguf_tokenizer(metadata: Mapping[str, GgufValue], path: Path) -> Tokenizer:
    """Returns the tokenizer of a GGUF file. `path` is for messages.

    Raises:
        StartupError: the metadata is incomplete, or of a kind that is not understood.
    """
    source = _Source(metadata, path)
    kind = source.text("model")
    if kind == "gpt2":
        tokenizer = _byte_level(source)
    elif kind == "llama":
        tokenizer = _sentence_piece(source)
    else:
        raise StartupError(f"{path}: tokenizer.ggml.model is {kind!r}; 'gpt2' and 'llama' are understood")
    _add_whole_tokens(tokenizer, source)
    return tokenizer


class _Source:
    """The keys below `tokenizer.ggml.`, checked as they are read."""

    def __init__(self, metadata: Mapping[str, GgufValue], path: Path) -> None:
        self._metadata = metadata
        self.path = path
        self.tokens = self.texts("tokens")
        self.ids = {token: token_id for token_id, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            raise StartupError(f"{path}: tokenizer.ggml.tokens lists a token twice")

    def value(self, key: str) -> GgufValue | None:
        return self._metadata.get(f"tokenizer.ggml.{key}")

    def text(self, key: str) -> str:
        value = self.value(key)
        if not isinstance(value, str):
            raise self.missing(key)
        return value

    def texts(self, key: str) -> list[str]:
        value = self.value(key)
        if not isinstance(value, tuple):
            raise self.missing(key)
        return [item for item in value if isinstance(item, str)]

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.value(key)
        return default if value is None else bool(value)

    def token(self, key: str) -> str | None:
        """Returns the token whose id `key` holds."""
        value = self.value(key)
        if not isinstance(value, int) or not 0 <= value < len(self.tokens):
            return None
        return self.tokens[value]

    def token_types(self) -> tuple[GgufValue, ...]:
        value = self.value("token_type")
        return value if isinstance(value, tuple) else (TokenType.NORMAL,) * len(self.tokens)

    def missing(self, key: str) -> StartupError:
        return StartupError(f"{self.path}: tokenizer.ggml.{key} is missing or of the wrong type")


def _byte_level(source: _Source) -> Tokenizer:
    name = source.text("pre") if source.value("pre") is not None else "default"
    pre_tokenization = PRE_TOKENIZATIONS.get(name)
    if pre_tokenization is None:
        known = ", ".join(sorted(PRE_TOKENIZATIONS))
        raise StartupError(
            f"{source.path}: the pre-tokenizer {name!r} (tokenizer.ggml.pre) is not understood; these are: {known}. "
            "Serve the model from a folder with its tokenizer.json instead"
        )
    merges = [_split_merge(merge, source) for merge in source.texts("merges")]
    tokenizer = Tokenizer(BPE(vocab=source.ids, merges=merges, ignore_merges=pre_tokenization.ignores_merges))
    tokenizer.pre_tokenizer = pre_tokenization.build()
    tokenizer.decoder = decoders.ByteLevel()
    _add_template(tokenizer, source, adds_begin=pre_tokenization.adds_begin)
    return tokenizer


def _split_merge(merge: str, source: _Source) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if left not in source.ids or right not in source.ids or left + right not in source.ids:
        raise StartupError(f"{source.path}: tokenizer.ggml.merges has {merge!r}, of which a part is no token")
    return left, right


def _sentence_piece(source: _Source) -> Tokenizer:
    tokenizer = Tokenizer(
        BPE(
            vocab=source.ids,
            merges=_merges_from_scores(source),
            unk_token=source.token("unknown_token_id"),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    escape = normalizers.Replace(" ", _SPACE)
    adds_space = source.flag("add_space_prefix", default=True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), escape]) if adds_space else escape
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if adds_space else steps)
    _add_template(tokenizer, source, adds_begin=True)
    return tokenizer


def _merges_from_scores(source: _Source) -> list[tuple[str, str]]:
    """Returns the merges that a vocabulary with scores implies, best first.

    SentencePiece merges the neighbours that form the token with the highest score, so every way to
    cut a token in two is a merge of that token's rank. Cuts of one token are ordered by their ids,
    as in published tokenizer.json files.
    """
    scores = source.value("scores")
    if not isinstance(scores, tuple) or len(scores) < len(source.tokens):
        raise source.missing("scores")
    ids = source.ids
    ranked: list[tuple[float, int, int, str, str]] = []
    for token, score, token_type in zip(source.tokens, scores, source.token_types(), strict=False):
        if token_type not in (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED):
            continue
        assert isinstance(score, int | float)
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                ranked.append((-score, ids[left], ids[right], left, right))
    ranked.sort(key=lambda merge: merge[0])
    return [(left, right) for *_, left, right in ranked]


def _add_template(tokenizer: Tokenizer, source: _Source, *, adds_begin: bool) -> None:
    """Makes `add_special_tokens` add what the file says."""
    begin = source.token("bos_token_id") if source.flag("add_bos_token", default=adds_begin) else None
    end = source.token("eos_token_id") if source.flag("add_eos_token", default=False) else None
    if begin is None and end is None:
        return
    tokenizer.post_processor = TemplateProcessing(
        single=[piece for piece in (begin, "$A", end) if piece is not None],
        special_tokens=[(token, source.ids[token]) for token in {begin, end} if token is not None],
    )


def _add_whole_tokens(tokenizer: Tokenizer, source: _Source) -> None:
    """Marks the tokens that are found in a text before it is cut: control tokens and those of the user."""
    special: list[str | AddedToken] = []
    plain: list[str | AddedToken] = []
    for token, token_type in zip(source.tokens, source.token_types(), strict=False):
        if not token:
            continue
        if token_type in (TokenType.CONTROL, TokenType.UNKNOWN):
            special.append(AddedToken(token, special=True, normalized=False))
        elif token_type == TokenType.USER_DEFINED:
            plain.append(AddedToken(token, special=False, normalized=False))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)
