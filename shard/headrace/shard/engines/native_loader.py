"""Loads a model for the native engine: weights first, a warm-up, then the KV cache in the memory that is left."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from headrace.contract.clock import MonotonicClock
from headrace.contract.engine import EngineDescription
from headrace.contract.errors import StartupError
from headrace.kernels.dispatch import Kernels, KernelsUnavailable, select
from headrace.kernels.quantization import WeightFormat
from headrace.shard import kv_cache
from headrace.shard.capabilities import NATIVE_FIELDS
from headrace.shard.engines.native_options import NativeOptions, Speculation
from headrace.shard.kv_cache import KvBudget
from headrace.shard.kv_pages import KvPages
from headrace.shard.lora_weights import LoraReader
from headrace.shard.memory import available_bytes
from headrace.shard.model_dtype import check_dtype, choose_dtype
from headrace.shard.model_runner import ModelRunner
from headrace.shard.models.config import ModelConfig
from headrace.shard.models.registry import ModelBuilder, load_model, open_source
from headrace.shard.models.rotary import build_table
from headrace.shard.models.token_list import require_same_tokens
from headrace.shard.speculation.drafter import Drafter
from headrace.shard.speculation.model_drafter import ModelDrafter
from headrace.shard.speculation.ngram_drafter import NgramDrafter
from headrace.shard.speculation.speculator import Speculator
from headrace.shard.speculation.step_cost import StepCost, measure_steps
from headrace.shard.weights import WeightReader


class NativeLoader:
    """Takes the steps from options to a model that can run."""

    def __init__(self, options: NativeOptions, progress: Callable[[str], None]) -> None:
        """Opens the model's files.

        Raises:
            StartupError: an option is wrong, or the files hold no supported model.
        """
        if options.thread_count:
            torch.set_num_threads(options.thread_count)
        self.processors = _choose_processors(options)
        """One for each thread that computes, or none."""
        self._options = options
        self._progress = progress
        check_dtype(options.dtype)
        self._speculates = _choose_speculation(options) is not Speculation.OFF
        self._device = _choose_device(options)
        self._weight_format = _choose_weight_format(options)
        self.kernels = _choose_kernels(options, self._device, self._weight_format, progress)
        """The version of the operators."""
        progress(f"opening {options.model}")
        self._source = open_source(Path(options.model))
        self._config = self._source.config
        self._dtype, reason = choose_dtype(
            options.dtype, self._source.stored_type, is_bfloat16_fast=self.kernels.is_bfloat16_fast
        )
        progress(reason)
        self.context_token_count = _choose_context(options, self._config)
        """Longest sequence."""
        self._build: ModelBuilder | None = None
        self._cos_sin = build_table(
            size=self._config.head_dim,
            base=self._config.rotary_base,
            scaling=self._config.rotary_scaling,
            position_count=self.context_token_count,
        ).to(self._device)

    def load_weights(self) -> None:
        """Loads every weight.

        Raises:
            StartupError: a tensor is missing, unknown or of the wrong shape.
        """
        reader = WeightReader(
            self._source,
            dtype=self._dtype,
            device=self._device,
            progress=self._progress,
            keeps_blocks=self._weight_format is WeightFormat.AUTO,
        )
        self._build = load_model(self._config, reader, self.kernels)

    def open_draft(self) -> "NativeLoader | None":
        """Opens the model that guesses tokens, if one does; its weights are loaded as those of any other.

        Raises:
            StartupError: it cannot be opened, or has another tokenizer.
        """
        options = self._options
        if options.speculation != Speculation.DRAFT:
            return None
        draft = replace(options, model=options.draft_model, speculation=Speculation.OFF, draft_model="")
        loader = NativeLoader(replace(draft, context_token_count=0), self._progress)
        require_same_tokens(Path(options.model), Path(options.draft_model))
        return loader

    def size_cache(self, block_count: int = 0) -> KvBudget:
        """Runs the model once over a cache of one block, and decides by what memory is left then.

        Takes a number of blocks that the cache must have, or 0 to decide by the options.

        Raises:
            StartupError: the cache that was asked for does not fit, or none does.
        """
        options = replace(self._options, block_count=block_count or self._options.block_count)
        self._progress("warming up")
        smallest = kv_cache.smallest_budget(self._config, dtype=self._dtype, block_size=options.block_size)
        self.complete(smallest).warm_up()
        budget = kv_cache.plan_budget(
            self._config,
            dtype=self._dtype,
            block_size=options.block_size,
            block_count=options.block_count,
            memory_bytes=options.kv_memory_bytes,
            available_bytes=available_bytes(self._device),
            most_token_count=options.row_limit * self.context_token_count,
        )
        self._progress(budget.explain())
        return budget

    def complete(self, budget: KvBudget) -> ModelRunner:
        """Returns the loaded model over a cache of this size."""
        assert self._build is not None
        caches = kv_cache.allocate(self._config, budget, dtype=self._dtype, device=self._device)
        return ModelRunner(
            self._build(caches, self._cos_sin),
            kernels=self.kernels,
            block_size=budget.block_size,
            device=self._device,
            pages=None if self._device.type != "cpu" else KvPages.of(caches, budget),
        )

    def adapter_reader(self) -> LoraReader:
        """Returns what reads adapters for the model."""
        return LoraReader(
            self._config, dtype=self._dtype, device=self._device, rank_limit=self._options.adapter_rank_limit
        )

    def _supported_fields(self) -> frozenset[str]:
        fields = NATIVE_FIELDS if self._options.adapter_limit else NATIVE_FIELDS - {"adapter"}
        return fields | {"speculation"} if self._speculates else fields

    def describe(self, budget: KvBudget) -> EngineDescription:
        """Returns what the engine says of itself."""
        return EngineDescription(
            engine="native",
            architecture=self._config.architecture,
            weight_type=_weight_type(self._dtype, self._weight_format),
            vocabulary_size=self._config.vocabulary_size,
            context_token_count=self.context_token_count,
            block_size=budget.block_size,
            block_count=budget.block_count,
            steps_in_flight=2,
            supported_fields=self._supported_fields(),
            end_of_sequence_token_ids=self._config.end_of_sequence_token_ids,
            row_limit=self._options.row_limit,
            token_limit=self._options.token_limit,
            hidden_size=self._config.hidden_size,
            draft_token_limit=self._options.draft_token_limit if self._speculates else 0,
        )

    def speculate(
        self, description: EngineDescription, runner: ModelRunner, draft: "NativeLoader | None"
    ) -> Speculator | None:
        """Returns what guesses tokens ahead for the loaded model, after it has measured what guesses cost.

        Raises:
            StartupError: the cache of the model that guesses does not fit.
        """
        if not self._speculates:
            return None
        drafter: Drafter = NgramDrafter()
        if draft is not None:
            draft_runner = draft.complete(draft.size_cache(description.block_count))
            drafter = ModelDrafter(
                draft_runner,
                kernels=draft.kernels,
                cost=self._measure(draft_runner, description),
                clock=MonotonicClock(),
                context_token_count=draft.context_token_count,
                vocabulary_size=description.vocabulary_size,
            )
        cost = self._measure(runner, description)
        return Speculator(description, drafter=drafter, cost=cost, clock=MonotonicClock())

    def _measure(self, runner: ModelRunner, description: EngineDescription) -> StepCost:
        self._progress("measuring what steps take")
        limit = min(description.context_token_count, description.block_size * description.block_count)
        return measure_steps(runner.rehearse, MonotonicClock(), token_limit=limit)


def _choose_speculation(options: NativeOptions) -> Speculation:
    if options.speculation not in list(Speculation):
        raise StartupError(f"engine option speculation: {options.speculation!r} is none of {', '.join(Speculation)}")
    if options.draft_token_limit < 1:
        raise StartupError(f"engine option draft_token_limit: {options.draft_token_limit} is below 1")
    if (options.speculation == Speculation.DRAFT) is not bool(options.draft_model):
        raise StartupError("engine option draft_model: goes with speculation=draft, and it with draft_model")
    return Speculation(options.speculation)


def _choose_device(options: NativeOptions) -> torch.device:
    try:
        device = torch.device(options.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        # torch says "not compiled with CUDA" by an AssertionError.
        raise StartupError(f"engine option device: {options.device!r} cannot be used: {error}") from error
    return device


def _choose_processors(options: NativeOptions) -> tuple[int, ...]:
    try:
        processors = tuple(map(int, options.processors.split(","))) if options.processors else ()
    except ValueError as error:
        raise StartupError(f"engine option processors: {error}") from error
    if processors and len(processors) != options.thread_count:
        raise StartupError(f"engine option processors: {len(processors)} for {options.thread_count} threads")
    return processors


def _choose_weight_format(options: NativeOptions) -> WeightFormat:
    if options.weight_format not in list(WeightFormat):
        raise StartupError(
            f"engine option weight_format: {options.weight_format!r} is none of {', '.join(WeightFormat)}"
        )
    return WeightFormat(options.weight_format)


def _weight_type(dtype: torch.dtype, weight_format: WeightFormat) -> str:
    # Weights that stay packed are those of the dtype.
    return str(weight_format) if weight_format is WeightFormat.INT8 else str(dtype).removeprefix("torch.")


def _choose_kernels(
    options: NativeOptions, device: torch.device, weight_format: WeightFormat, progress: Callable[[str], None]
) -> Kernels:
    try:
        return select(device, options.kernels, weight_format=weight_format, progress=progress)
    except KernelsUnavailable as error:
        raise StartupError(f"engine option kernels: {error}") from error


def _choose_context(options: NativeOptions, config: ModelConfig) -> int:
    limit = config.context_token_count
    if options.context_token_count > limit:
        raise StartupError(
            f"engine option context_token_count: {options.context_token_count} is more than the model's {limit}"
        )
    return options.context_token_count or limit
