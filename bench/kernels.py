"""Measures the CPU operators against the reference and against memory, and a whole step against its matrix products.

    python bench/kernels.py [--json result.json] [--model FOLDER_OR_GGUF]

The shapes are those of SmolLM2-135M in bfloat16. Everything that is compared is
measured in turns within one run, and the medians are given, because a machine's
speed changes from minute to minute: read the ratios, not the times.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, repeat
from pathlib import Path

import torch
from harness.decoding_batch import BLOCK_SIZE, Row, first_step

from headrace.contract.step import StepPlan
from headrace.kernels.dispatch import Kernels, select
from headrace.kernels.quantization import WeightFormat
from headrace.shard.engines.native import NativeEngine, load_native_engine
from headrace.shard.engines.native_options import NativeOptions

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY, LAYERS = 576, 1536, 9, 3, 64, 49152, 30
LINEAR_SHAPES = ((960, 576), (576, 576), (3072, 576), (576, 1536))
DTYPE = torch.bfloat16
ROUND_COUNT = 7


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    prepare: Callable[[Kernels], Callable[[], object]]
    """Returns what is measured for a version of the operators."""
    byte_count: int
    """What has to be read and written at least."""


def median_s(functions: dict[str, Callable[[], object]], *, least_s: float = 0.02) -> dict[str, float]:
    """Measures functions in turns, each for a while, and returns the median time of a call."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_index in range(ROUND_COUNT):
        for name, function in functions.items():
            function()
            ends_s = time.perf_counter() + least_s
            while not times[name] or time.perf_counter() < ends_s or len(times[name]) <= round_index:
                began_s = time.perf_counter()
                function()
                times[name].append(time.perf_counter() - began_s)
    return {name: statistics.median(values) for name, values in times.items()}


def read_bandwidth() -> float:
    """Returns bytes per second of a sum over more memory than the caches hold."""
    memory = torch.ones(64 * 2**20, dtype=torch.float32)
    return memory.nbytes / median_s({"sum": memory.sum})["sum"]


def operator_cases() -> Iterator[Case]:
    for token_count in (1, 32, 2048):
        yield norm_case(token_count)
        yield silu_case(token_count)
        yield linear_case(token_count)
    for row_count, query_count, context in ((1, 1, 160), (32, 1, 160), (1, 1, 8000), (32, 128, 128), (1, 2000, 2000)):
        yield attention_case(row_count, query_count, context)
    for row_count in (1, 32):
        yield from sampling_cases(row_count)


def norm_case(token_count: int) -> Case:
    x, weight = torch.randn(token_count, HIDDEN).to(DTYPE), torch.ones(HIDDEN, dtype=DTYPE)
    return Case(
        name=f"add_rms_norm {token_count}",
        # The sum would grow without end if it were kept.
        prepare=lambda kernels: lambda: kernels.add_rms_norm(x, x.clone(), weight, 1e-5),
        byte_count=4 * x.nbytes,
    )


def silu_case(token_count: int) -> Case:
    gate_up = torch.randn(token_count, 2 * INNER).to(DTYPE)
    return Case(
        name=f"silu_mul {token_count}",
        prepare=lambda kernels: lambda: kernels.silu_mul(gate_up),
        byte_count=gate_up.nbytes * 3 // 2,
    )


def linear_case(token_count: int) -> Case:
    weight, x = torch.randn(2 * INNER, HIDDEN).to(DTYPE), torch.randn(token_count, HIDDEN).to(DTYPE)

    def prepare(kernels: Kernels) -> Callable[[], object]:
        layer = kernels.pack_gated_linear(weight)
        return lambda: layer(x)

    return Case(name=f"gated linear {token_count}", prepare=prepare, byte_count=weight.nbytes + x.nbytes)


def attention_case(row_count: int, query_count: int, context: int) -> Case:
    token_count, width = row_count * query_count, -(-context // BLOCK_SIZE)
    keys, values = torch.randn(2, row_count * width, KV_HEADS, BLOCK_SIZE, HEAD_DIM).to(DTYPE).unbind()
    tables = torch.randperm(row_count * width).view(row_count, width).int()
    starts = torch.arange(0, token_count + 1, query_count).int()
    query = torch.randn(token_count, HEADS, HEAD_DIM).to(DTYPE)

    def prepare(kernels: Kernels) -> Callable[[], object]:
        batch = kernels.prepare_attention(
            tables, starts, torch.full((row_count,), context).int(), block_size=BLOCK_SIZE
        )
        return lambda: kernels.paged_attention(query, keys, values, batch, scale=0.125)

    return Case(
        name=f"attention {row_count} x {query_count} of {context}",
        prepare=prepare,
        byte_count=2 * row_count * context * KV_HEADS * HEAD_DIM * 2 + 2 * query.nbytes,
    )


def sampling_cases(row_count: int) -> Iterator[Case]:
    logits = torch.randn(row_count, VOCABULARY).to(DTYPE)
    integers = torch.arange(row_count)
    columns = {
        "temperature": torch.ones(row_count),
        "top_k": torch.zeros(row_count, dtype=torch.int64),
        "top_p": torch.full((row_count,), 0.9),
        "seeds": integers,
        "positions": integers,
    }
    yield Case(
        name=f"likeliest {row_count}",
        prepare=lambda kernels: lambda: kernels.likeliest(logits),
        byte_count=logits.nbytes,
    )
    yield Case(
        name=f"sample top-p {row_count}",
        prepare=lambda kernels: lambda: kernels.sample(logits, **columns),
        byte_count=logits.nbytes,
    )


def measure_operators(bandwidth: float) -> list[dict[str, object]]:
    cpu, reference = (select(torch.device("cpu"), name) for name in ("cpu", "reference"))
    rows: list[dict[str, object]] = []
    print(f"{'operator':28} {'cpu us':>9} {'reference us':>13} {'times faster':>13} {'of bandwidth':>13}")
    for case in operator_cases():
        times = median_s({"cpu": case.prepare(cpu), "reference": case.prepare(reference)})
        share = case.byte_count / times["cpu"] / bandwidth
        faster = times["reference"] / times["cpu"]
        print(f"{case.name:28} {times['cpu'] * 1e6:9.1f} {times['reference'] * 1e6:13.1f} {faster:13.1f} {share:13.0%}")
        rows.append({"operator": case.name, "cpu_s": times["cpu"], "reference_s": times["reference"], "share": share})
    return rows


def library_products(row_count: int) -> Callable[[], object]:
    """Returns all matrix products of a step by oneDNN, over weights that it has packed for so many rows."""
    pack, multiply = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise.default
    weights = [[pack(torch.randn(*shape).to(DTYPE), row_count) for shape in LINEAR_SHAPES] for _ in range(LAYERS)]
    head = pack(torch.randn(VOCABULARY, HIDDEN).to(DTYPE), row_count)
    inputs = [torch.randn(row_count, width).to(DTYPE) for _, width in LINEAR_SHAPES]

    def run() -> None:
        for layer in weights:
            for x, weight in zip(inputs, layer, strict=True):
                multiply(x, weight, None, "none", [], "")
        multiply(inputs[0], head, None, "none", [], "")

    return run


def own_products(row_count: int, weight_format: WeightFormat) -> Callable[[], object]:
    """Returns all matrix products of a step by our operators."""
    kernels = select(torch.device("cpu"), "cpu", weight_format=weight_format)
    weights = [[kernels.pack_linear(torch.randn(*shape).to(DTYPE)) for shape in LINEAR_SHAPES] for _ in range(LAYERS)]
    head = kernels.pack_linear(torch.randn(VOCABULARY, HIDDEN).to(DTYPE))
    inputs = [torch.randn(row_count, width).to(DTYPE) for _, width in LINEAR_SHAPES]

    def run() -> None:
        for layer in weights:
            for x, multiply in zip(inputs, layer, strict=True):
                multiply(x)
        head(inputs[0])

    return run


def admit(row_count: int, prompt_token_count: int) -> StepPlan:
    """Returns a first step that leaves room for some hundred tokens after the prompts."""
    return first_step(
        [Row()] * row_count,
        prompt_token_count=prompt_token_count,
        token_limit=prompt_token_count + BLOCK_SIZE + 5000 // row_count,
    )


def run_next_step(engine: NativeEngine, step_ids: Iterator[int]) -> None:
    engine.execute(StepPlan(step_id=next(step_ids)))


def measure_steps(model: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    print(
        f"\n{'weights':8} {'rows':>4} {'step ms':>8} {'oneDNN ms':>10} {'ratio':>6} "
        f"{'own ms':>7} {'ratio':>6} {'tok/s':>6}"
    )
    for weight_format in (WeightFormat.PLAIN, WeightFormat.AUTO, WeightFormat.INT8):
        options = NativeOptions(model=model, dtype="bfloat16", weight_format=weight_format, kernels="cpu")
        for row_count in (1, 8, 32):
            engine = load_native_engine(options, lambda _: None)
            engine.execute(admit(row_count, 128))
            functions: dict[str, Callable[[], object]] = {
                "step": partial(run_next_step, engine, count(2)),
                "library": library_products(row_count),
                "own": own_products(row_count, weight_format),
            }
            # Few enough steps that contexts stay between 128 and 192 tokens.
            times = median_s(functions, least_s=0.08)
            step_s, library_s, own_s = times["step"], times["library"], times["own"]
            print(
                f"{weight_format:8} {row_count:4} {step_s * 1e3:8.2f} "
                f"{library_s * 1e3:10.2f} {step_s / library_s:6.2f} "
                f"{own_s * 1e3:7.2f} {step_s / own_s:6.2f} {row_count / step_s:6.0f}"
            )
            rows.append({"weights": weight_format, "rows": row_count, **{f"{name}_s": s for name, s in times.items()}})
    return rows


def measure_prefill(model: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    print(f"\n{'prompts':>8} {'of tokens':>9} {'tok/s':>7}")
    options = NativeOptions(model=model, dtype="bfloat16", kernels="cpu")
    engine = load_native_engine(options, lambda _: None)
    for row_count, token_count in ((1, 128), (32, 128), (1, 2000)):
        times: list[float] = []
        for _ in repeat(None, ROUND_COUNT):
            engine.reset()
            plan = admit(row_count, token_count)
            began_s = time.perf_counter()
            engine.execute(plan)
            times.append(time.perf_counter() - began_s)
        speed = row_count * token_count / statistics.median(times)
        print(f"{row_count:8} {token_count:9} {speed:7.0f}")
        rows.append({"prompts": row_count, "tokens": token_count, "tokens_per_s": speed})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument(
        "--model", default="", help="a model with SmolLM2-135M's shapes; without one no step is measured"
    )
    parser.add_argument("--only-steps", action="store_true", help="measure neither single operators nor prompts")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result: dict[str, object] = {}
    with torch.inference_mode():
        if not arguments.only_steps:
            bandwidth = read_bandwidth()
            print(f"memory is read at {bandwidth / 1e9:.1f} GB/s by {arguments.threads} threads\n")
            result |= {"bandwidth": bandwidth, "operators": measure_operators(bandwidth)}
        if arguments.model:
            result["steps"] = measure_steps(arguments.model)
        if arguments.model and not arguments.only_steps:
            result["prefill"] = measure_prefill(arguments.model)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
