"""The native engine: our model code in torch, stepped by the router."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from headrace.contract.clock import Clock, MonotonicClock
from headrace.contract.engine import EngineDescription
from headrace.contract.errors import StartupError
from headrace.contract.step import StepPlan, StepResult, StepTimings
from headrace.kernels.dispatch import Kernels, KernelsUnavailable, select
from headrace.shard import kv_cache
from headrace.shard.attention import PagedAttention
from headrace.shard.capabilities import SUPPORTED_FIELDS
from headrace.shard.input_batch import InputBatch
from headrace.shard.memory import available_bytes
from headrace.shard.model_runner import ModelRunner
from headrace.shard.models.config import ModelConfig
from headrace.shard.models.registry import load_model, open_source
from headrace.shard.models.rotary import build_table
from headrace.shard.options import OptionValue, parse_options
from headrace.shard.sampler import Sampler
from headrace.shard.weights import WeightReader

_DTYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16}
"""NOTE: `auto` is float32, whose greedy tokens can be compared with any other implementation's;
bfloat16 halves the memory and is faster where the processor has instructions for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeOptions:
    """How the native engine runs a model."""

    model: str
    """A folder with config.json and safetensors files, or a GGUF file."""
    dtype: str = "auto"
    """Of weights, activations and KV cache: float32, bfloat16 or auto, which is float32."""
    device: str = "cpu"
    """As torch names it."""
    kernels: str = "auto"
    """A version of the operators; auto takes the fastest that runs on the device."""
    block_size: int = 16
    """Tokens per KV block."""
    block_count: int = 0
    """KV blocks; 0 decides by memory."""
    kv_memory_bytes: int = 0
    """Memory for the KV cache; 0 takes half of what is left after loading, but no more than can be used."""
    context_token_count: int = 0
    """Longest sequence; 0 takes the model's, which it must not exceed."""
    row_limit: int = 256
    """Most rows in a step."""
    token_limit: int = 8192
    """Most tokens in a step."""
    thread_count: int = 0
    """Threads of torch's operators in this process; 0 leaves them as they are."""


def create_native_engine(options: Mapping[str, OptionValue], progress: Callable[[str], None]) -> "NativeEngine":
    """Loads a model and sizes the KV cache, with NativeOptions by name.

    Raises:
        StartupError: an option is wrong, or the model cannot be loaded.
    """
    return load_native_engine(parse_options(NativeOptions, options), progress)


def load_native_engine(options: NativeOptions, progress: Callable[[str], None]) -> "NativeEngine":
    """Loads a model and sizes the KV cache by what memory is left.

    Raises:
        StartupError: an option is wrong, or the model cannot be loaded.
    """
    if options.thread_count:
        torch.set_num_threads(options.thread_count)
    dtype, device, kernels = _choose_dtype(options), _choose_device(options), _choose_kernels(options)
    progress(f"opening {options.model}")
    source = open_source(Path(options.model))
    config = source.config
    context_token_count = _choose_context(options, config)
    reader = WeightReader(source, dtype=dtype, device=device, progress=progress)
    build = load_model(config, reader, kernels)
    budget = kv_cache.plan_budget(
        config,
        dtype=dtype,
        block_size=options.block_size,
        block_count=options.block_count,
        memory_bytes=options.kv_memory_bytes,
        available_bytes=available_bytes(device),
        most_token_count=options.row_limit * context_token_count,
    )
    progress(budget.explain())
    cos_sin = build_table(
        size=config.head_dim,
        base=config.rotary_base,
        scaling=config.rotary_scaling,
        position_count=context_token_count,
    ).to(device)
    attentions = tuple(
        PagedAttention(kernels=kernels, cache=cache, cos_sin=cos_sin, scale=config.head_dim**-0.5)
        for cache in kv_cache.allocate(config, budget, dtype=dtype, device=device)
    )
    return NativeEngine(
        EngineDescription(
            engine="native",
            architecture=config.architecture,
            weight_type=str(dtype).removeprefix("torch."),
            vocabulary_size=config.vocabulary_size,
            context_token_count=context_token_count,
            block_size=options.block_size,
            block_count=budget.block_count,
            steps_in_flight=2,
            supported_fields=SUPPORTED_FIELDS,
            end_of_sequence_token_ids=config.end_of_sequence_token_ids,
            row_limit=options.row_limit,
            token_limit=options.token_limit,
        ),
        runner=ModelRunner(build(attentions), kernels=kernels, block_size=options.block_size, device=device),
        sampler=Sampler(kernels),
    )


class NativeEngine:
    """Runs a model that is loaded."""

    def __init__(
        self,
        description: EngineDescription,
        *,
        runner: ModelRunner,
        sampler: Sampler,
        clock: Clock | None = None,
    ) -> None:
        self._description = description
        self._runner = runner
        self._sampler = sampler
        self._clock = clock or MonotonicClock()
        self._batch = InputBatch(description)

    @property
    def description(self) -> EngineDescription:
        """What the engine is."""
        return self._description

    def reset(self) -> None:
        """Empties the batch."""
        self._batch.clear()

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Runs one step; see Engine.execute."""
        began_s = self._clock.now()
        batch = self._batch
        step = batch.apply(plan)
        if len(step.rows) == 0:
            return StepResult(step_id=plan.step_id, token_counts=(0,) * step.row_count, token_ids=())
        inputs = self._runner.prepare(batch.flatten(step), batch.block_tables(step), step.samples)
        prepared_s = self._clock.now()
        logits = self._runner.run(inputs)
        computed_s = self._clock.now()
        draw = self._sampler.draw(logits, batch, step)
        outcomes = batch.record(step, draw.token_ids, draw.failed)
        return StepResult(
            step_id=plan.step_id,
            token_counts=outcomes.token_counts,
            token_ids=outcomes.token_ids,
            ended_rows=outcomes.ended_rows,
            row_ends=outcomes.row_ends,
            errors=draw.errors,
            logprobs=draw.logprobs,
            timings=StepTimings(
                prepare_s=prepared_s - began_s,
                forward_s=computed_s - prepared_s,
                sample_s=self._clock.now() - computed_s,
            ),
        )


def _choose_dtype(options: NativeOptions) -> torch.dtype:
    if options.dtype not in _DTYPES:
        raise StartupError(f"engine option dtype: {options.dtype!r} is none of {', '.join(_DTYPES)}")
    return _DTYPES[options.dtype]


def _choose_device(options: NativeOptions) -> torch.device:
    try:
        device = torch.device(options.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        # torch says "not compiled with CUDA" by an AssertionError.
        raise StartupError(f"engine option device: {options.device!r} cannot be used: {error}") from error
    return device


def _choose_kernels(options: NativeOptions) -> Kernels:
    try:
        return select(torch.device(options.device), options.kernels)
    except KernelsUnavailable as error:
        raise StartupError(f"engine option kernels: {error}") from error


def _choose_context(options: NativeOptions, config: ModelConfig) -> int:
    limit = config.context_token_count
    if options.context_token_count > limit:
        raise StartupError(
            f"engine option context_token_count: {options.context_token_count} is more than the model's {limit}"
        )
    return options.context_token_count or limit
