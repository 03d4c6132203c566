"""LoRA adapters with random weights, as PEFT saves them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_llama import SHAPE

_HIDDEN, _INNER = int(str(SHAPE["hidden_size"])), int(str(SHAPE["intermediate_size"]))
_KV = _HIDDEN // int(str(SHAPE["num_attention_heads"])) * int(str(SHAPE["num_key_value_heads"]))
LAYER_COUNT = int(str(SHAPE["num_hidden_layers"]))
WIDTHS: Mapping[str, tuple[int, int]] = {
    "self_attn.q_proj": (_HIDDEN, _HIDDEN),
    "self_attn.k_proj": (_HIDDEN, _KV),
    "self_attn.v_proj": (_HIDDEN, _KV),
    "self_attn.o_proj": (_HIDDEN, _HIDDEN),
    "mlp.gate_proj": (_HIDDEN, _INNER),
    "mlp.up_proj": (_HIDDEN, _INNER),
    "mlp.down_proj": (_INNER, _HIDDEN),
}
"""Input and output width of every linear layer of a tiny Llama."""

EVERYWHERE = tuple(name.partition(".")[2] for name in WIDTHS)


def save_lora(
    folder: Path, *, seed: int = 1, rank: int = 4, targets: Sequence[str] = EVERYWHERE, **config: object
) -> Path:
    """Saves an adapter for a tiny Llama that changes its tokens clearly."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for index in range(LAYER_COUNT):
        for name, (width, height) in WIDTHS.items():
            if name.endswith(tuple(targets)):
                prefix = f"base_model.model.model.layers.{index}.{name}"
                tensors[f"{prefix}.lora_A.weight"] = 0.4 * torch.randn(rank, width, generator=generator)
                tensors[f"{prefix}.lora_B.weight"] = 0.4 * torch.randn(height, rank, generator=generator)
    return save_tensors(folder, tensors, r=rank, target_modules=list(targets), **config)


def save_tensors(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    """Saves tensors as an adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    complete = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": list(EVERYWHERE)} | config
    (folder / "adapter_config.json").write_text(json.dumps(complete))
    return folder
