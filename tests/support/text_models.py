"""Small models for tests of text: their metadata, and files made of it."""

import json
from collections.abc import Mapping
from pathlib import Path

import gguf
import tokenizers
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from headrace.router.gguf_metadata import GgufValue

DATA = Path(__file__).resolve().parents[1] / "unit" / "router" / "text"

CHAT_ML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


EXAMPLE_CHARACTERS = st.characters(
    codec="utf-8",
    exclude_characters="\x04\x06\x13\x14\x16\x1d",
).filter(lambda character: not 0x40000 <= ord(character) < 0xC0000)
"""What the example model's vocabulary can spell: it lacks six control characters and the planes that nobody uses."""


def sentence_piece_metadata() -> dict[str, GgufValue]:
    """Metadata of a vocabulary with scores that SentencePiece learned from this project's contracts."""
    rows = json.loads((DATA / "sentence_piece_tokens.json").read_text())["vocabulary"]
    return {
        "general.architecture": "llama",
        "llama.context_length": 128,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tuple(piece for piece, _, _ in rows),
        "tokenizer.ggml.scores": tuple(score for _, score, _ in rows),
        "tokenizer.ggml.token_type": tuple(token_type for _, _, token_type in rows),
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def byte_level_metadata(**changes: GgufValue) -> dict[str, GgufValue]:
    """Metadata of a byte-level vocabulary without merges: each byte is a token. `changes` are below tokenizer.ggml."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<s>", "<|im_start|>", "<|im_end|>"]
    kinds = [1] * (len(tokens) - 3) + [3] * 3
    keys: dict[str, GgufValue] = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tuple(tokens),
        "merges": (),
        "token_type": tuple(kinds),
        "bos_token_id": tokens.index("<s>"),
        "eos_token_id": tokens.index("<s>"),
    }
    return {
        "general.architecture": "llama",
        "llama.context_length": 128,
        **{f"tokenizer.ggml.{key}": value for key, value in (keys | changes).items()},
    }


def write_gguf(path: Path, metadata: Mapping[str, GgufValue]) -> Path:
    """Writes a GGUF file without tensors. An empty array has no type in the format, so it is left out."""
    writer = gguf.GGUFWriter(path, str(metadata["general.architecture"]))
    for key, value in metadata.items():
        if key == "general.architecture" or value == ():
            continue
        if isinstance(value, tuple):
            writer.add_array(key, list(value))
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def byte_level_backend() -> tokenizers.Tokenizer:
    """A byte-level tokenizer as tokenizer.json files describe it: each byte is a token, and three special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE(vocab={text: index for index, text in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("<s>", "<|im_start|>", "<|im_end|>")])
    return backend


def write_folder(folder: Path, **files: object) -> Path:
    """Writes a model's folder. `files` adds, replaces or, with None, leaves out; `.json` is added to their names."""
    contents: dict[str, object] = {
        "config": {
            "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 256,
            "vocab_size": 264,
            "eos_token_id": 256,
        },
        "generation_config": {"temperature": 0.6, "top_p": 0.9, "top_k": 40, "max_new_tokens": 50, "eos_token_id": 256},
        "tokenizer_config": {"bos_token": {"content": "<s>"}, "eos_token": "<s>", "chat_template": CHAT_ML},
        "tokenizer": json.loads(byte_level_backend().to_str()),
    } | files
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        if content is not None:
            (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder
