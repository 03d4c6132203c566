"""PEFT folders for tests."""

import json
from collections.abc import Mapping
from pathlib import Path

CONFIG: Mapping[str, object] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


def write_peft_folder(folder: Path, *, weights: bytes = b"weights", **config: object) -> Path:
    """Writes a folder that has the files of an adapter; its weights are whatever they are given as."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder
