"""Measures what adapters cost in a step of the example model: the rows that have one, and the rows beside them."""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from harness.decoding_batch import BLOCK_SIZE, Row, decoding_step_s
from harness.spread import Spread, paired_ratios
from safetensors.torch import save_file

from headrace.contract.adapter import AdapterOrder
from headrace.services.model_source import resolve_model
from headrace.shard.engine import Engine
from headrace.shard.registry import create_engine

MODEL = "smollm2-135m-instruct"
LAYER_COUNT = 30
WIDTHS = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (576, 192),
    "self_attn.v_proj": (576, 192),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (576, 1536),
    "mlp.up_proj": (576, 1536),
    "mlp.down_proj": (1536, 576),
}
"""Input and output width of the linear layers of the example model."""
PROMPT_COUNT = 32
WARMUP_COUNT = 4


def save_adapter(folder: Path, *, rank: int, seed: int) -> Path:
    """Writes an adapter with a random product beside every linear layer."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(LAYER_COUNT):
        for name, (width, height) in WIDTHS.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, width, generator=generator) * 0.02
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(height, rank, generator=generator) * 0.02
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = [name.partition(".")[2] for name in WIDTHS]
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


class Bench:
    """An engine, and the adapters that it may load."""

    def __init__(self, engine: Engine, folders: Sequence[Path], step_count: int) -> None:
        self._engine = engine
        self._folders = folders
        self._step_count = step_count

    def run(self, rows: Sequence[int], *, loads: bool = True) -> float:
        """Returns the median of the durations of steps in seconds; each row names its adapter, -1 for none."""
        self._engine.reset()
        digests = []
        if loads:
            orders = [AdapterOrder(source=str(folder)) for folder in self._folders]
            digests = [self._engine.prepare_adapter(order)().digest for order in orders]
        return decoding_step_s(
            self._engine,
            [Row(adapter="" if adapter < 0 else digests[adapter]) for adapter in rows],
            prompt_token_count=PROMPT_COUNT,
            warmup_count=WARMUP_COUNT,
            step_count=self._step_count,
        )


def cases(row_count: int) -> dict[str, list[int]]:
    """Returns the batches by name: the adapter of each row."""
    return {
        "none uses one": [-1] * row_count,
        "one row uses one": [0] + [-1] * (row_count - 1),
        "half of the rows use four": [row // 2 % 4 if row % 2 else -1 for row in range(row_count)],
        "all rows use the same": [0] * row_count,
        "all rows use four": [row % 4 for row in range(row_count)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--thread-count", type=int, default=2)
    arguments = parser.parse_args()
    options = {
        "model": str(resolve_model(MODEL)),
        "block_size": BLOCK_SIZE,
        "block_count": arguments.rows * 16,
        "thread_count": arguments.thread_count,
        "dtype": arguments.dtype,
    }
    engine = create_engine("native", options)
    with tempfile.TemporaryDirectory() as place:
        folders = [save_adapter(Path(place) / str(seed), rank=arguments.rank, seed=seed) for seed in range(4)]
        bench = Bench(engine, folders, arguments.steps)
        batches = cases(arguments.rows)
        plain_s: list[float] = []
        taken_s: dict[str, list[float]] = {name: [] for name in batches}
        for number in range(arguments.rounds + 1):
            plain = bench.run([-1] * arguments.rows, loads=False)
            found = {name: bench.run(rows) for name, rows in batches.items()}
            if number > 0:  # the first round warms up
                plain_s.append(plain)
                for name, value_s in found.items():
                    taken_s[name].append(value_s)
    print("| four adapters are loaded | ms a step | to a step with none loaded |\n|---|---|---|")
    for name, values_s in taken_s.items():
        ratio = paired_ratios(values_s, plain_s)
        print(
            f"| {name} | {Spread.of(values_s).median * 1e3:.1f}"
            f" | {ratio.median:.3f} ({ratio.least:.3f} to {ratio.most:.3f}) |"
        )
    print(f"\nwith none loaded {Spread.of(plain_s).median * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
