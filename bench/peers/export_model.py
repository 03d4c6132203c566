"""Writes the example model as a safetensors folder with its tokenizer, for peers that read no GGUF file.

    python bench/peers/export_model.py MODEL.gguf FOLDER

Runs in a peer's environment, with transformers, gguf and accelerate.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM


def main() -> int:
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    place = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    loaded = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    config = AutoConfig.from_pretrained(**place)
    # The file's quantization is undone by loading, but transformers saves no model that still names one.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(**place).save_pretrained(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
