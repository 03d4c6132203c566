"""Checks the Triton operators on a GPU against the reference, and measures them against the device's copy bandwidth.

    python bench/kernels_gpu.py [result.json]

The shapes are those of a model with 8 billion parameters, in bfloat16. A time
includes launching from Python, which is what limits the smallest cases. Exits
with 1 if an operator is wrong, and with 2 if there is nothing to run on.
"""

import json
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from headrace.kernels.dispatch import Kernels

Results = tuple[torch.Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    hidden: int = 4096
    inner: int = 14336
    head_count: int = 32
    kv_head_count: int = 8
    head_dim: int = 128
    block_size: int = 16
    vocabulary: int = 128256
    row_count: int = 64
    chunk: int = 2048
    context: int = 4096
    long_context: int = 32768


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    run: Callable[[Kernels], Results]
    """Gives what the two versions have to agree on."""
    byte_count: int
    """What has to be read and written at least."""
    flop_count: int = 0
    """Of the matrix products, where they may be what limits."""
    wrong_share: float = 0.0
    """Of the integers in a result, how many may differ: two devices round a token's edge differently."""


class Shapes:
    """Makes the cases of one set of sizes on one device."""

    def __init__(self, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> None:
        self._sizes = sizes
        self._device = device
        self._dtype = dtype

    def cases(self) -> Iterator[Case]:
        sizes = self._sizes
        for token_count in (1, sizes.row_count, sizes.chunk):
            yield from self._token_cases(token_count)
        yield self._attention("decode", [(1, sizes.context)] * sizes.row_count)
        yield self._attention("decode one long row", [(1, sizes.long_context)])
        yield self._attention("prefill", [(sizes.chunk, sizes.chunk)])
        yield self._attention("prefill after a prefix", [(sizes.chunk, sizes.context)])
        mixed = [(1, sizes.context)] * (sizes.row_count - 1) + [(sizes.chunk, sizes.context)]
        yield self._attention("prefill and decode", mixed)
        yield from self._sampling_cases()

    def _randn(self, *size: int) -> torch.Tensor:
        return torch.randn(*size, device=self._device).to(self._dtype)

    def _token_cases(self, token_count: int) -> Iterator[Case]:
        sizes = self._sizes
        x, residual, weight = (self._randn(*size) for size in ((token_count, sizes.hidden),) * 2 + ((sizes.hidden,),))
        row_bytes = x.nbytes
        yield Case(
            name=f"rms_norm, {token_count} tokens",
            run=lambda kernels: (kernels.rms_norm(x, weight, 1e-5),),
            byte_count=2 * row_bytes,
        )
        yield Case(
            name=f"add_rms_norm, {token_count} tokens",
            run=lambda kernels: kernels.add_rms_norm(x, residual, weight, 1e-5),
            byte_count=4 * row_bytes,
        )
        gate_up = self._randn(token_count, 2 * sizes.inner)
        yield Case(
            name=f"silu_mul, {token_count} tokens",
            run=lambda kernels: (kernels.silu_mul(gate_up),),
            byte_count=gate_up.nbytes * 3 // 2,
        )
        yield self._rotary_case(token_count)

    def _rotary_case(self, token_count: int) -> Case:
        sizes = self._sizes
        query = self._randn(token_count, sizes.head_count, sizes.head_dim)
        key, value = (self._randn(token_count, sizes.kv_head_count, sizes.head_dim) for _ in range(2))
        angles = torch.rand(sizes.context, sizes.head_dim // 2, device=self._device) * 6
        cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
        block_count = -(-token_count // sizes.block_size) + 1
        caches = [self._randn(block_count, sizes.kv_head_count, sizes.block_size, sizes.head_dim) for _ in range(2)]
        slot_ids = torch.randperm(block_count * sizes.block_size, device=self._device)[:token_count]
        positions = torch.randint(sizes.context, (token_count,), device=self._device)

        def run(kernels: Kernels) -> Results:
            rotated = kernels.rotary_and_write_kv(
                *(query, key, value),
                positions=positions,
                cos_sin=cos_sin,
                key_cache=caches[0],
                value_cache=caches[1],
                slot_ids=slot_ids,
            )
            return rotated, *caches

        byte_count = 2 * (query.nbytes + key.nbytes + value.nbytes)
        return Case(name=f"rotary_and_write_kv, {token_count} tokens", run=run, byte_count=byte_count)

    def _attention(self, name: str, rows: list[tuple[int, int]]) -> Case:
        """Makes a case of rows of (tokens in the step, tokens in all)."""
        sizes = self._sizes
        counts = [-(-context // sizes.block_size) for _, context in rows]
        order = torch.randperm(sum(counts), dtype=torch.int32, device=self._device)
        tables = torch.nn.utils.rnn.pad_sequence(list(torch.split(order, counts)), batch_first=True)
        cache_shape = (sum(counts), sizes.kv_head_count, sizes.block_size, sizes.head_dim)
        key_cache, value_cache = self._randn(*cache_shape), self._randn(*cache_shape)
        lengths = torch.tensor([0] + [length for length, _ in rows], device=self._device)
        contexts = torch.tensor([context for _, context in rows], dtype=torch.int32, device=self._device)
        query = self._randn(sum(length for length, _ in rows), sizes.head_count, sizes.head_dim)
        starts = lengths.cumsum(0).int()

        def run(kernels: Kernels) -> Results:
            batch = kernels.prepare_attention(tables, starts, contexts, block_size=sizes.block_size)
            return (kernels.paged_attention(query, key_cache, value_cache, batch, scale=sizes.head_dim**-0.5),)

        # A token sees what was there before and, on average, half of the step.
        pair_count = sum(length * (2 * context - length + 1) // 2 for length, context in rows)
        return Case(
            name=f"paged_attention, {name}",
            run=run,
            byte_count=key_cache.nbytes + value_cache.nbytes + 2 * query.nbytes,
            flop_count=4 * pair_count * sizes.head_count * sizes.head_dim,
        )

    def _sampling_cases(self) -> Iterator[Case]:
        sizes = self._sizes
        logits = self._randn(sizes.row_count, sizes.vocabulary) * 3
        ids = torch.arange(sizes.row_count, device=self._device)
        ones = torch.ones(sizes.row_count, device=self._device)
        yield Case(
            name="likeliest",
            run=lambda kernels: tuple(kernels.likeliest(logits)),
            byte_count=logits.nbytes,
        )
        for name, top_k, top_p in (("all", 0, 1.0), ("top-k", 50, 1.0), ("top-p", 0, 0.9)):

            def draw(kernels: Kernels, top_k: int = top_k, top_p: float = top_p) -> Results:
                columns = {"temperature": ones * 0.8, "top_k": ids * 0 + top_k, "top_p": ones * top_p}
                return (kernels.sample(logits, **columns, seeds=ids - 7, positions=ids + 2**33),)

            yield Case(name=f"sample, {name}", run=draw, byte_count=logits.nbytes, wrong_share=0.02)
        yield Case(
            name="logprobs",
            run=lambda kernels: tuple(kernels.logprobs(logits, ids, 5)),
            byte_count=logits.nbytes,
        )


def faults(case: Case, found: Results, expected: Results) -> list[str]:
    """Returns how the results of two versions differ by more than rounding explains."""
    texts = []
    for one, other in zip(found, expected, strict=True):
        if one.is_floating_point():
            error = (one.float() - other.float()).abs()
            bound = 0.02 + 0.02 * other.float().abs()
            # Said this way round, because a NaN is within no bound.
            if not (error <= bound).all():
                texts.append(f"differs by up to {error.max().item():.4g}")
        elif (differing := (one != other).float().mean().item()) > case.wrong_share:
            texts.append(f"{differing:.2%} of the integers differ")
    return texts


def check(case: Case, kernels: Kernels, reference: Kernels) -> list[str]:
    # Copies, because versions may write to one and the same cache.
    found = tuple(result.clone() for result in case.run(kernels))
    return faults(case, found, case.run(reference))


def main() -> int:
    if not torch.cuda.is_available() or find_spec("triton") is None:
        print(
            "This measures the Triton operators on a GPU, and needs one, a build of torch for it, and triton. "
            f"Here: torch {torch.__version__}, CUDA {torch.cuda.is_available()}, triton {bool(find_spec('triton'))}.",
            file=sys.stderr,
        )
        return 2
    # Triton comes with torch's builds for GPUs alone.
    import triton.testing  # noqa: PLC0415

    from headrace.kernels.gpu.triton_kernels import TritonKernels  # noqa: PLC0415
    from headrace.kernels.reference import ReferenceKernels  # noqa: PLC0415

    torch.manual_seed(0)
    device = torch.device("cuda")
    kernels, reference = TritonKernels(), ReferenceKernels()
    buffer = torch.empty((2, 2**30), dtype=torch.uint8, device=device)
    copy_rate = buffer.nbytes / triton.testing.do_bench(lambda: buffer[1].copy_(buffer[0])) / 1e6
    operators = []
    for case in Shapes(Sizes(), device, torch.bfloat16).cases():
        found = check(case, kernels, reference)
        time_ms = triton.testing.do_bench(lambda run=case.run: run(kernels), return_mode="median")
        rate = case.byte_count / time_ms / 1e6
        operators.append(
            {
                "name": case.name,
                "faults": found,
                "time_us": time_ms * 1e3,
                "gigabytes_per_s": rate,
                "share_of_copy": rate / copy_rate,
                "teraflops": case.flop_count / time_ms / 1e9,
            }
        )
        print(
            f"{case.name:40} {time_ms * 1e3:9.1f} us {rate / copy_rate:6.1%} of copying  {'; '.join(found) or 'right'}"
        )
    result = {
        "device": torch.cuda.get_device_name(device),
        "host": platform.machine(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "copy_gigabytes_per_s": copy_rate,
        "operators": operators,
    }
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "kernels_gpu.json")
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"copying reaches {copy_rate:.0f} GB/s; all of it is in {path}")
    return int(any(operator["faults"] for operator in operators))


if __name__ == "__main__":
    sys.exit(main())
