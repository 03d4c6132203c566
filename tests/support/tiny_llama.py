"""A Llama with random weights, small enough to load in a blink, as Transformers saves it."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel

VOCABULARY_SIZE = 211
END_TOKEN_ID = 2
BROKEN_TOKEN_ID = 210
"""Its embedding is not a number, so whatever contains it fails."""

SHAPE = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": END_TOKEN_ID,
    # Far from the usual 0.02, so that logits differ clearly and texts do not fall into a loop.
    "initializer_range": 0.4,
}


def tiny_llama_config(**changes: object) -> LlamaConfig:
    return LlamaConfig(**(SHAPE | changes))


def save_model(folder: Path, model_type: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """Saves a model with random weights, biases and norms among them, and returns it."""
    torch.manual_seed(7)
    model = model_type(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "norm.weight")):
                parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model


def save_tiny_llama(folder: Path) -> None:
    """Saves a tiny Llama for conformance tests."""
    model = save_model(folder, LlamaForCausalLM, tiny_llama_config())
    with torch.no_grad():
        model.model.embed_tokens.weight[BROKEN_TOKEN_ID] = torch.nan
    model.save_pretrained(folder)
