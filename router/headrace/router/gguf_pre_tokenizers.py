"""Knows how a byte-level vocabulary in a GGUF file wants its text cut before merging.

A GGUF file names the cut (`tokenizer.ggml.pre`) in place of describing it. Each name
stands for what the model's own tokenizer.json says; the merges were learned on
those pieces, and other pieces give other tokens.
"""

from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"

_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA_3 = rf"{_CONTRACTION}|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_TAIL}"
_QWEN_2 = rf"{_CONTRACTION}|{_LEAD}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_TAIL}"
_QWEN_3_5 = rf"{_CONTRACTION}|{_LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*{_TAIL}"
_TEKKEN = rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_TAIL}"
_GPT_4O = (
    rf"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTION}?|{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_TAIL}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreTokenization:
    """What a name in `tokenizer.ggml.pre` stands for."""

    patterns: tuple[str, ...]
    """Regular expressions; each cuts the pieces of the one before. What none matches is a piece too."""
    splits_digits: bool = False
    """Whether each character of category N is a piece of its own, before the patterns are looked at."""
    ignores_merges: bool = False
    """Whether a piece that is a token as a whole needs no merges."""
    adds_begin: bool = False
    """Whether a text starts with the beginning-of-sequence token when the file does not say."""

    def build(self) -> PreTokenizer:
        """Returns the steps in order, the last of which spells bytes as characters."""
        steps: list[PreTokenizer] = [Digits(individual_digits=True)] if self.splits_digits else []
        steps += [Split(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        return Sequence([*steps, ByteLevel(add_prefix_space=False, use_regex=False)])


_PLAIN = PreTokenization(patterns=(_GPT_2,))
_SINGLE_DIGITS = PreTokenization(patterns=(_GPT_2,), splits_digits=True)
_LLAMA = PreTokenization(patterns=(_LLAMA_3,), ignores_merges=True, adds_begin=True)
_QWEN = PreTokenization(patterns=(_QWEN_2,))

PRE_TOKENIZATIONS: dict[str, PreTokenization] = {
    # Files of unknown origin. The cut is llama.cpp's, since their tokens were only ever looked at through it.
    "default": PreTokenization(patterns=(r"[\p{P}\$\+<=>\^~\|]+", _GPT_2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": _PLAIN,
    "mpt": _PLAIN,
    "olmo": _PLAIN,
    "phi-2": _PLAIN,
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "command-r": _SINGLE_DIGITS,
    "llama-bpe": _LLAMA,
    "llama3": _LLAMA,
    "llama-v3": _LLAMA,
    "falcon3": _LLAMA,
    "qwen2": _QWEN,
    "deepseek-r1-qwen": _QWEN,
    "qwen35": PreTokenization(patterns=(_QWEN_3_5,)),
    "tekken": PreTokenization(patterns=(_TEKKEN,), ignores_merges=True, adds_begin=True),
    "gpt-4o": PreTokenization(patterns=(_GPT_4O,)),
    "llama4": PreTokenization(patterns=(_GPT_4O,)),
}
"""By `tokenizer.ggml.pre`."""
