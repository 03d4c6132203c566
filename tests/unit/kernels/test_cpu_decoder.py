"""The decoder as one operator: the same, to the last bit, as the operators one by one."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from block_weights import make_blocks
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.kernels.build import default_cache_folder
from headrace.kernels.cpu import CpuKernels, load_cpu_kernels
from headrace.kernels.cpu_decoder import CpuDecoder, panels_of
from headrace.kernels.decoder import ComposedDecoder, Decoder, DecoderLayer, DecoderParts, DecoderStep
from headrace.kernels.linear import PackedLinear
from headrace.kernels.low_rank import (
    DecoderStacks,
    LayerAdapter,
    LowRankLayer,
    LowRankPart,
    PartSizes,
    TokenAdapters,
    stack_adapters,
)
from headrace.kernels.quantization import WeightFormat

BLOCK_SIZE = 16
POSITION_COUNT = 1200


@dataclass(frozen=True, kw_only=True)
class Widths:
    """What a decoder is made of."""

    hidden: int = 64
    inner: int = 96
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    rotary_dim: int = 16
    layers: int = 3
    has_bias: bool = False
    block_count: int = 200


def make_parts(kernels: CpuKernels, widths: Widths, dtype: torch.dtype) -> DecoderParts:
    """Makes a decoder of random weights over a random cache."""
    generator = torch.Generator().manual_seed(widths.hidden + widths.heads)

    def random(*size: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(size, generator=generator) * scale).to(dtype)

    def bias(size: int) -> torch.Tensor | None:
        return random(size) if widths.has_bias else None

    query, kv = widths.heads * widths.head_dim, widths.kv_heads * widths.head_dim

    def layer() -> DecoderLayer:
        return DecoderLayer(
            input_norm=random(widths.hidden),
            query_key_value=kernels.pack_linear(random(query + 2 * kv, widths.hidden, scale=0.1), bias(query + 2 * kv)),
            attention_output=kernels.pack_linear(random(widths.hidden, query, scale=0.1)),
            mlp_norm=random(widths.hidden),
            gated=kernels.pack_gated_linear(random(2 * widths.inner, widths.hidden, scale=0.1)),
            down=kernels.pack_linear(random(widths.hidden, widths.inner, scale=0.1), bias(widths.hidden)),
        )

    cache_size = (widths.block_count, widths.kv_heads, BLOCK_SIZE, widths.head_dim)
    return DecoderParts(
        layers=tuple(layer() for _ in range(widths.layers)),
        final_norm=random(widths.hidden),
        key_caches=tuple(random(*cache_size) for _ in range(widths.layers)),
        value_caches=tuple(random(*cache_size) for _ in range(widths.layers)),
        cos_sin=torch.randn(POSITION_COUNT, widths.rotary_dim, generator=generator),
        head_count=widths.heads,
        head_dim=widths.head_dim,
        norm_epsilon=1e-5,
        scale=widths.head_dim**-0.5,
    )


def copy_caches(parts: DecoderParts) -> DecoderParts:
    """Returns the same decoder over a copy of its cache."""
    return replace(
        parts,
        key_caches=tuple(cache.clone() for cache in parts.key_caches),
        value_caches=tuple(cache.clone() for cache in parts.value_caches),
    )


def make_adapter(widths: Widths, dtype: torch.dtype, *, seed: int, rank: int) -> tuple[LayerAdapter, ...]:
    """Makes an adapter with a product beside every linear layer."""
    generator = torch.Generator().manual_seed(seed)

    def linear(in_count: int, *sizes: int) -> LowRankLayer:
        parts = [
            LowRankPart(
                down=torch.randn(rank, in_count, generator=generator),
                up=torch.randn(size, rank, generator=generator) * 0.1,
            )
            for size in sizes
        ]
        return LowRankLayer.of(parts, in_feature_count=in_count, dtype=dtype, device=torch.device("cpu"))

    sizes = part_sizes(widths)
    return tuple(
        LayerAdapter(
            query_key_value=linear(widths.hidden, *sizes.query_key_value),
            attention_output=linear(sizes.query_key_value[0], *sizes.attention_output),
            gated=linear(widths.hidden, *sizes.gated),
            down=linear(widths.inner, *sizes.down),
        )
        for _ in range(widths.layers)
    )


def part_sizes(widths: Widths) -> PartSizes:
    """Returns the outputs of the parts of each linear layer."""
    query, kv = widths.heads * widths.head_dim, widths.kv_heads * widths.head_dim
    return PartSizes(
        query_key_value=(query, kv, kv),
        attention_output=(widths.hidden,),
        gated=(widths.inner, widths.inner),
        down=(widths.hidden,),
    )


def run(
    decoder: Decoder,
    kernels: CpuKernels,
    widths: Widths,
    rows: list[tuple[int, int]],
    dtype: torch.dtype,
    *,
    row_adapters: list[int] | None = None,
    stacks: DecoderStacks | None = None,
) -> torch.Tensor:
    """Runs rows of (tokens of this step, tokens before), each over blocks of its own and with its adapter."""
    generator = torch.Generator().manual_seed(len(rows))
    contexts = [query_count + before for query_count, before in rows]
    width = -(-max(contexts) // BLOCK_SIZE)
    tables = torch.randperm(widths.block_count, generator=generator)[: len(rows) * width].view(len(rows), width)
    starts = torch.tensor([0, *(query_count for query_count, _ in rows)]).cumsum(0)
    positions = torch.cat([torch.arange(before, before + query_count) for query_count, before in rows])
    row_of_token = torch.repeat_interleave(torch.arange(len(rows)), starts.diff())
    slots = tables[row_of_token, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    outputs = torch.cat([starts[1:] - 1, torch.tensor([0])])
    adapters = None
    if row_adapters is not None and stacks is not None:
        adapters = TokenAdapters(indices=torch.tensor(row_adapters)[row_of_token], stacks=stacks)
    attention = kernels.prepare_attention(tables.int(), starts.int(), torch.tensor(contexts).int(), block_size=16)
    return decoder(
        torch.randn(int(starts[-1]), widths.hidden, generator=generator).to(dtype),
        DecoderStep(
            positions=positions, slot_ids=slots, attention=attention, output_indices=outputs, adapters=adapters
        ),
    )


def check_equal(kernels: CpuKernels, widths: Widths, rows: list[tuple[int, int]], dtype: torch.dtype) -> None:
    """Compares both ways for a decoder of these widths."""
    check_equal_parts(kernels, make_parts(kernels, widths, dtype), widths, rows, dtype)


def check_equal_parts(
    kernels: CpuKernels, fused_parts: DecoderParts, widths: Widths, rows: list[tuple[int, int]], dtype: torch.dtype
) -> None:
    """Runs both ways, and compares what they return and what they leave in the cache."""
    composed_parts = copy_caches(fused_parts)
    fused = kernels.build_decoder(fused_parts)
    assert isinstance(fused, CpuDecoder)
    expected = run(ComposedDecoder(composed_parts, kernels), kernels, widths, rows, dtype)
    assert expected.isfinite().all()
    assert torch.equal(run(fused, kernels, widths, rows, dtype), expected)
    for mine, theirs in zip(
        (*fused_parts.key_caches, *fused_parts.value_caches),
        (*composed_parts.key_caches, *composed_parts.value_caches),
        strict=True,
    ):
        assert torch.equal(mine, theirs)


MIXES = {
    "one": [(1, 0)],
    "decode": [(1, 3), (1, 0), (1, 77), (1, 31)],
    "prefill": [(50, 0), (3, 0)],
    "mixed": [(1, 10), (40, 16), (1, 200), (7, 5)],
    "split by keys": [(1, 700), (2, 513)],
    "many": [(1, place) for place in range(40)],
    "long": [(600, 100)],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", MIXES.values(), ids=MIXES.keys())
def test_equals_the_operators_one_by_one(
    cpu_kernels: CpuKernels, rows: list[tuple[int, int]], dtype: torch.dtype
) -> None:
    check_equal(cpu_kernels, Widths(), rows, dtype)


@pytest.mark.parametrize(
    "widths",
    [
        Widths(has_bias=True),
        Widths(hidden=32, inner=32, heads=1, kv_heads=1, head_dim=32, rotary_dim=32, layers=1),
        Widths(hidden=96, inner=160, heads=6, kv_heads=2, head_dim=48, rotary_dim=24, layers=2),
        Widths(heads=8, kv_heads=1, head_dim=20, rotary_dim=20),
    ],
    ids=["biases", "smallest", "part of a head is rotated", "heads of odd width"],
)
def test_takes_every_shape_of_decoder(cpu_kernels: CpuKernels, widths: Widths) -> None:
    check_equal(cpu_kernels, widths, MIXES["mixed"], torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_takes_weights_in_eight_bits(dtype: torch.dtype) -> None:
    kernels = load_cpu_kernels(default_cache_folder(), print, weight_format=WeightFormat.INT8)
    check_equal(kernels, Widths(has_bias=True), MIXES["mixed"], dtype)


def compact_kernels() -> CpuKernels:
    return load_cpu_kernels(default_cache_folder(), print, weight_format=WeightFormat.COMPACT)


@pytest.mark.parametrize("rows", MIXES.values(), ids=MIXES.keys())
def test_takes_weights_in_twelve_bits(rows: list[tuple[int, int]]) -> None:
    widths, plain = Widths(has_bias=True), load_cpu_kernels(default_cache_folder(), print)
    compact_parts = make_parts(compact_kernels(), widths, torch.bfloat16)
    assert {linear.panels.dtype for linear in panels_of(compact_parts)} == {torch.uint8}
    check_equal_parts(compact_kernels(), compact_parts, widths, rows, torch.bfloat16)
    outcomes = [
        run(kernels.build_decoder(make_parts(kernels, widths, torch.bfloat16)), kernels, widths, rows, torch.bfloat16)
        for kernels in (compact_kernels(), plain)
    ]
    assert torch.equal(*outcomes)


def test_one_weight_that_does_not_fit_into_twelve_bits_keeps_the_others_in_one_operator() -> None:
    widths, kernels = Widths(layers=2), compact_kernels()
    parts = make_parts(kernels, widths, torch.bfloat16)
    wild = torch.zeros(widths.hidden, widths.inner)
    wild[3] = torch.logspace(-38, 0, widths.inner).flip(0)[
        torch.randperm(widths.inner, generator=torch.Generator().manual_seed(0))
    ]
    layers = (parts.layers[0], replace(parts.layers[1], down=kernels.pack_linear(wild.to(torch.bfloat16))))
    mixed = replace(parts, layers=layers)
    assert {linear.panels.dtype for linear in panels_of(mixed)} == {torch.uint8, torch.bfloat16}
    check_equal_parts(kernels, mixed, widths, MIXES["mixed"], torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_minima", [False, True])
def test_takes_weights_in_blocks(cpu_kernels: CpuKernels, *, has_minima: bool, dtype: torch.dtype) -> None:
    widths = Widths(layers=2)
    parts = make_parts(cpu_kernels, widths, dtype)

    def pack(out_count: int, in_count: int, *, is_gated: bool = False) -> PackedLinear:
        weight = make_blocks(out_count, in_count, has_minima=has_minima, seed=out_count)
        return cpu_kernels.pack_blocks(weight, dtype=dtype, is_gated=is_gated)

    blocks = [
        replace(
            layer,
            query_key_value=pack(128, widths.hidden),
            attention_output=pack(widths.hidden, 64),
            gated=pack(2 * widths.inner, widths.hidden, is_gated=True),
            down=pack(widths.hidden, widths.inner),
        )
        for layer in parts.layers
    ]
    check_equal_parts(cpu_kernels, replace(parts, layers=tuple(blocks)), widths, MIXES["mixed"], dtype)
    mixed = cpu_kernels.build_decoder(replace(parts, layers=(blocks[0], parts.layers[1])))
    assert isinstance(mixed, ComposedDecoder)


@settings(deadline=None, max_examples=25)
@given(rows=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 300)), min_size=1, max_size=8))
def test_equals_them_for_any_rows(rows: list[tuple[int, int]]) -> None:
    check_equal(load_cpu_kernels(default_cache_folder(), print), Widths(layers=2), rows, torch.bfloat16)


def test_gives_the_same_however_threads_share_the_work(cpu_kernels: CpuKernels) -> None:
    parts = make_parts(cpu_kernels, Widths(), torch.bfloat16)
    before = torch.get_num_threads()
    outcomes: list[torch.Tensor] = []
    try:
        for thread_count in (1, 2, 5):
            torch.set_num_threads(thread_count)
            decoder = cpu_kernels.build_decoder(copy_caches(parts))
            outcomes += [run(decoder, cpu_kernels, Widths(), MIXES["mixed"], torch.bfloat16) for _ in range(5)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(outcome, outcomes[0]) for outcome in outcomes)


def test_runs_where_nothing_is_wanted_of_the_tokens(cpu_kernels: CpuKernels) -> None:
    widths = Widths()
    parts = make_parts(cpu_kernels, widths, torch.float32)
    alone = copy_caches(parts)
    batch = cpu_kernels.prepare_attention(
        torch.tensor([[3]]).int(), torch.tensor([0, 4]).int(), torch.tensor([4]).int(), block_size=BLOCK_SIZE
    )
    tokens, places = torch.randn(4, widths.hidden), torch.arange(4)
    for some_parts, outputs in ((parts, places[:0]), (alone, places)):
        slots = places + 3 * BLOCK_SIZE
        step = DecoderStep(positions=places, slot_ids=slots, attention=batch, output_indices=outputs)
        normed = cpu_kernels.build_decoder(some_parts)(tokens.clone(), step)
        assert normed.shape == (len(outputs), widths.hidden)
    assert torch.equal(parts.key_caches[-1], alone.key_caches[-1])


def test_widths_that_fill_no_panels_are_left_to_the_operators(cpu_kernels: CpuKernels) -> None:
    widths = Widths(hidden=40)
    decoder = cpu_kernels.build_decoder(make_parts(cpu_kernels, widths, torch.float32))
    assert isinstance(decoder, ComposedDecoder)
    assert run(decoder, cpu_kernels, widths, MIXES["mixed"], torch.float32).isfinite().all()


def drop_products(layer: LayerAdapter) -> LayerAdapter:
    """Leaves an adapter's products beside the keys and the gates alone."""

    def only(linear: LowRankLayer, part: int, sizes: tuple[int, ...]) -> LowRankLayer:
        kept = list(linear.ups(sizes))[part]
        parts: list[LowRankPart | None] = [None] * len(sizes)
        if len(sizes) > 1:
            start = sum(linear.part_ranks[:part])
            parts[part] = LowRankPart(down=linear.down[:, start : start + kept.shape[0]].T, up=kept.T)
        return LowRankLayer.of(
            parts, in_feature_count=linear.down.shape[0], dtype=linear.down.dtype, device=linear.down.device
        )

    sizes = part_sizes(Widths(has_bias=True))
    return LayerAdapter(
        query_key_value=only(layer.query_key_value, 1, sizes.query_key_value),
        attention_output=only(layer.attention_output, 0, sizes.attention_output),
        gated=only(layer.gated, 0, sizes.gated),
        down=only(layer.down, 0, sizes.down),
    )


ADAPTED = {
    "one": ([(1, 9)], [0]),
    "decode": ([(1, 3), (1, 0), (1, 77), (1, 31), (1, 5), (1, 6), (1, 8)], [0, 1, -1, 0, 0, 0, 0]),
    "mixed": ([(1, 10), (40, 16), (1, 200), (7, 5)], [-1, 1, 2, 0]),
    "none": ([(1, 10), (4, 16)], [-1, -1]),
    "split by keys": ([(1, 700), (2, 513)], [2, -1]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "row_adapters"), ADAPTED.values(), ids=ADAPTED.keys())
def test_equals_them_with_adapters(
    cpu_kernels: CpuKernels, rows: list[tuple[int, int]], row_adapters: list[int], dtype: torch.dtype
) -> None:
    """Adapters of unlike ranks, one of which has few products."""
    widths = Widths(has_bias=True)
    adapters = [make_adapter(widths, dtype, seed=seed, rank=rank) for seed, rank in ((1, 4), (2, 20), (3, 16))]
    adapters[2] = tuple(map(drop_products, adapters[2]))
    stacks = stack_adapters(adapters, part_sizes(widths))
    fused_parts = make_parts(cpu_kernels, widths, dtype)
    composed_parts = copy_caches(fused_parts)
    fused = cpu_kernels.build_decoder(fused_parts)
    assert isinstance(fused, CpuDecoder)
    composed = ComposedDecoder(composed_parts, cpu_kernels)
    expected = run(composed, cpu_kernels, widths, rows, dtype, row_adapters=row_adapters, stacks=stacks)
    actual = run(fused, cpu_kernels, widths, rows, dtype, row_adapters=row_adapters, stacks=stacks)
    assert expected.isfinite().all()
    assert torch.equal(actual, expected)
    for mine, theirs in zip(
        (*fused_parts.key_caches, *fused_parts.value_caches),
        (*composed_parts.key_caches, *composed_parts.value_caches),
        strict=True,
    ):
        assert torch.equal(mine, theirs)


def test_adapters_that_do_not_fit_are_refused(cpu_kernels: CpuKernels) -> None:
    widths = Widths()
    decoder = cpu_kernels.build_decoder(make_parts(cpu_kernels, widths, torch.float32))
    adapter = make_adapter(widths, torch.float32, seed=1, rank=4)
    wider = make_adapter(Widths(inner=128), torch.float32, seed=1, rank=4)
    for adapters, index, message in (
        ([adapter], 1, "outside of"),
        ([wider], 0, "up must be"),
        ([adapter[:2]], 0, "lists"),
    ):
        stacks = stack_adapters(adapters, part_sizes(widths))
        with pytest.raises(RuntimeError, match=message):
            run(decoder, cpu_kernels, widths, [(1, 4)], torch.float32, row_adapters=[index], stacks=stacks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_without_an_adapter_do_not_notice_those_with_one(cpu_kernels: CpuKernels, dtype: torch.dtype) -> None:
    widths, rows = Widths(has_bias=True), [(1, 20), (9, 0), (1, 300), (40, 7), (1, 0)]
    parts = make_parts(cpu_kernels, widths, dtype)
    adapters = [make_adapter(widths, dtype, seed=seed, rank=rank) for seed, rank in ((1, 4), (2, 20))]
    stacks = stack_adapters(adapters, part_sizes(widths))

    def outputs(row_adapters: list[int] | None) -> torch.Tensor:
        decoder = cpu_kernels.build_decoder(copy_caches(parts))
        assert isinstance(decoder, CpuDecoder)
        return run(decoder, cpu_kernels, widths, rows, dtype, row_adapters=row_adapters, stacks=stacks)

    plain, first, mixed = outputs(None), outputs([0] * 5), outputs([0, -1, 1, -1, 0])
    assert torch.equal(mixed[[1, 3]], plain[[1, 3]])
    assert torch.equal(mixed[[0, 4]], first[[0, 4]])
    assert (mixed[[0, 2, 4]] != plain[[0, 2, 4]]).any(dim=1).all()
    assert (mixed[2] != first[2]).any()


def test_tokens_that_are_not_there_are_refused(cpu_kernels: CpuKernels) -> None:
    widths = Widths()
    decoder = cpu_kernels.build_decoder(make_parts(cpu_kernels, widths, torch.float32))
    batch = cpu_kernels.prepare_attention(
        torch.tensor([[3]]).int(), torch.tensor([0, 1]).int(), torch.tensor([1]).int(), block_size=BLOCK_SIZE
    )
    place = torch.tensor([0])
    with pytest.raises(RuntimeError, match="output_tokens"):
        decoder(
            torch.randn(1, widths.hidden),
            DecoderStep(positions=place, slot_ids=place, attention=batch, output_indices=place + 1),
        )


def test_torch_can_trace_it(cpu_kernels: CpuKernels) -> None:
    widths = Widths(layers=1)
    decoder = cpu_kernels.build_decoder(make_parts(cpu_kernels, widths, torch.float32))
    assert isinstance(decoder, CpuDecoder)
    place, one = torch.tensor([0]), torch.tensor([1]).int()
    batch = cpu_kernels.prepare_attention(
        torch.tensor([[0]]).int(), torch.tensor([0, 1]).int(), one, block_size=BLOCK_SIZE
    )
    step = DecoderStep(positions=place, slot_ids=place, attention=batch, output_indices=place)
    arguments = decoder.arguments(torch.randn(1, widths.hidden), step)
    torch.library.opcheck(decoder.operator, arguments)
    stacks = stack_adapters([make_adapter(widths, torch.float32, seed=1, rank=4)], part_sizes(widths))
    adapted = replace(step, adapters=TokenAdapters(indices=place, stacks=stacks))
    torch.library.opcheck(decoder.operator, decoder.arguments(torch.randn(1, widths.hidden), adapted))


BURSTS = """
import os, random, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
print(flush=True)
while os.getppid() != 1:
    ends_s = time.perf_counter() + random.uniform(0.0005, 0.004)
    while time.perf_counter() < ends_s:
        pass
    time.sleep(random.uniform(0.0005, 0.004))
"""


@contextmanager
def bursts_on(processor: int) -> Iterator[None]:
    """Takes a processor from everyone else for a few milliseconds at a time."""
    with subprocess.Popen([sys.executable, "-c", BURSTS, str(processor)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor is no choice")
def test_threads_that_are_held_up_change_nothing_and_keep_their_processors(cpu_kernels: CpuKernels) -> None:
    processors = sorted(os.sched_getaffinity(0))[:2]
    widths = Widths(hidden=256, inner=512, heads=8, head_dim=32, rotary_dim=32, layers=4)
    decoder = cpu_kernels.build_decoder(make_parts(cpu_kernels, widths, torch.bfloat16))

    def bind() -> tuple[int, ...]:
        torch.set_num_threads(2)
        thread_ids = cpu_kernels.thread_ids()
        for thread_id, processor in zip(thread_ids, processors, strict=True):
            os.sched_setaffinity(thread_id, {processor})
        return thread_ids

    def compute() -> list[torch.Tensor]:
        return [run(decoder, cpu_kernels, widths, rows, torch.bfloat16) for rows in (MIXES["one"], MIXES["mixed"])]

    with ThreadPoolExecutor(1) as engine:
        thread_ids = engine.submit(bind).result()
        expected = engine.submit(compute).result()
        with ExitStack() as stack:
            for processor in processors:
                stack.enter_context(bursts_on(processor))
            ends_s = time.monotonic() + 2
            while time.monotonic() < ends_s:
                assert all(map(torch.equal, engine.submit(compute).result(timeout=60), expected))
                assert [os.sched_getaffinity(thread_id) for thread_id in thread_ids] == [{p} for p in processors]
