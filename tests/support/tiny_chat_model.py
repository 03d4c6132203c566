"""A chat model with random weights: one token for each byte, and the marks of its family as special tokens."""

import json
from pathlib import Path

from text_models import byte_level_backend
from tiny_llama import save_model, tiny_llama_config
from tokenizers import AddedToken
from transformers import LlamaForCausalLM


def save_tiny_chat_model(
    folder: Path, template: str, marks: tuple[str, ...] = (), *, visible_marks: tuple[str, ...] = ()
) -> Path:
    """Saves the model and returns its folder. It knows nothing, so whatever fits a schema was made to fit.

    `visible_marks` are tokens that are part of the text, as those of reasoning are in most families.
    """
    backend = byte_level_backend()
    backend.add_special_tokens([AddedToken(mark, special=True) for mark in ("<|eot|>", *marks)])
    backend.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in visible_marks])
    end_id = backend.token_to_id("<|im_end|>")
    size = backend.get_vocab_size()
    folder.mkdir()
    config = tiny_llama_config(vocab_size=size, max_position_embeddings=2048, eos_token_id=end_id)
    save_model(folder, LlamaForCausalLM, config)
    backend.save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": "<s>", "eos_token": "<|im_end|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    return folder
