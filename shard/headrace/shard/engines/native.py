"""The native engine: our model code in torch, stepped by the router."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from headrace.contract.adapter import AdapterOrder, LoadedAdapter
from headrace.contract.clock import Clock, MonotonicClock
from headrace.contract.engine import EngineDescription
from headrace.contract.errors import FeatureUnsupported
from headrace.contract.step import RowLogprobs, StepPlan, StepResult, StepTimings
from headrace.contract.vocabulary import Vocabulary
from headrace.shard.adapter_files import read_adapter_files
from headrace.shard.adapter_rows import AdapterLimits, AdapterRows
from headrace.shard.adapter_stacks import AdapterStacks
from headrace.shard.batch_columns import POOLS
from headrace.shard.compute_threads import ComputeThreads, stay_in_inference_mode
from headrace.shard.engines.native_loader import NativeLoader
from headrace.shard.engines.native_options import NativeOptions
from headrace.shard.input_batch import InputBatch
from headrace.shard.lora_weights import LoraReader, LoraWeights
from headrace.shard.model_runner import ModelRunner
from headrace.shard.options import OptionValue, parse_options
from headrace.shard.pooler import Pooled, PooledTokens, Pooler
from headrace.shard.sampler import Sampler
from headrace.shard.speculation.speculator import Speculator
from headrace.shard.step_rows import PromptTargets, StepRows
from headrace.shard.token_drawing import draw_step


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
    loader = NativeLoader(options, progress)
    loader.load_weights()
    draft = loader.open_draft()
    if draft is not None:
        draft.load_weights()
    budget = loader.size_cache()
    runner, description = loader.complete(budget), loader.describe(budget)
    return NativeEngine(
        description,
        runner=runner,
        sampler=Sampler(loader.kernels),
        threads=ComputeThreads(loader.kernels, loader.processors, progress),
        speculator=loader.speculate(description, runner, draft),
        adapter_reader=loader.adapter_reader(),
        adapter_limits=AdapterLimits(count=options.adapter_limit, size_bytes=options.adapter_memory_bytes),
    )


class NativeEngine:
    """Runs a model that is loaded."""

    def __init__(
        self,
        description: EngineDescription,
        *,
        runner: ModelRunner,
        sampler: Sampler,
        threads: ComputeThreads,
        adapter_reader: LoraReader,
        adapter_limits: AdapterLimits,
        speculator: Speculator | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._description = description
        self._runner = runner
        self._sampler = sampler
        self._threads = threads
        self._speculator = speculator
        self._clock = clock or MonotonicClock()
        self._adapter_reader = adapter_reader
        self._adapters = AdapterRows[LoraWeights](adapter_limits)
        self._stacks = AdapterStacks(adapter_reader.part_sizes)
        self._batch = InputBatch(description, self._adapters)
        self._pooler = Pooler()

    @property
    def description(self) -> EngineDescription:
        """What the engine is."""
        return self._description

    def enter_thread(self) -> None:
        """Binds the threads that compute to their processors, and leaves out what only training needs."""
        self._threads.adopt()
        stay_in_inference_mode()

    def reset(self) -> None:
        """Empties the batch and drops every adapter."""
        self._batch.clear()
        self._stacks.forget()

    def load_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Takes the model's tokens; see Engine.load_vocabulary."""
        self._batch.grammars.load(vocabulary)

    def prepare_adapter(self, order: AdapterOrder) -> Callable[[], LoadedAdapter]:
        """Reads an adapter into the model's type and onto its device."""
        if "adapter" not in self._description.supported_fields:
            raise FeatureUnsupported("adapter", "this model server takes no adapters: its adapter_limit is 0")
        files = read_adapter_files(order)
        weights = self._adapter_reader.read(files)
        loaded = LoadedAdapter(digest=files.digest, rank=weights.rank, size_bytes=weights.size_bytes)
        return lambda: self._adapters.add(loaded, weights)

    def drop_adapter(self, digest: str) -> None:
        """Takes an adapter from sequences to come."""
        self._adapters.drop(digest)
        self._stacks.forget()

    def execute(self, plan: StepPlan) -> StepResult:
        """Runs one step; see Engine.execute."""
        if torch.is_inference_mode_enabled():
            return self._execute(plan)
        with torch.inference_mode():
            return self._execute(plan)

    def _execute(self, plan: StepPlan) -> StepResult:
        began_s = self._clock.now()
        batch, speculator = self._batch, self._speculator
        step = batch.apply(plan)
        if len(step.rows) == 0:
            return StepResult(step_id=plan.step_id, token_counts=(0,) * step.row_count, token_ids=())
        drafts = None if speculator is None else speculator.draft(batch, step)
        if drafts is not None:
            step = batch.add_drafts(step, drafts)
        # Made by a helper while the model runs, and waited for when a token is drawn.
        batch.grammars.begin(step.sampling(step.places))
        flat = batch.flatten(step)
        wanted = self._pooler.select(step, flat, batch.columns) if step.needs & POOLS else None
        prompt = batch.prompt_targets(step, flat)
        asked = [tokens.indices for tokens in (wanted, prompt) if tokens is not None]
        hidden_indices = np.concatenate(asked) if asked else None
        adapters = None if self._adapters.is_idle else self._stacks.select(*self._adapters.select(step.places))
        inputs = self._runner.prepare(
            flat,
            batch.block_tables(step),
            step.output_indices(),
            hidden_indices,
            adapters,
            wants_logits=drafts is not None or self._sampler.needs_logits(step),
        )
        prepared_s = self._clock.now()
        computed = self._runner.run(inputs)
        computed_s = self._clock.now()
        pooled_count = 0 if wanted is None else len(wanted.indices)
        pooled = None if wanted is None else self._pool(step, computed.hidden[:pooled_count], wanted)
        told = () if prompt is None else self._report_prompt(computed.hidden[pooled_count:], prompt)
        failed = None if pooled is None else pooled.failed
        drawn = draw_step(self._sampler, batch, step, computed.logits, drafts=drafts, failed=failed)
        drawn_s = self._clock.now()
        if speculator is not None:
            speculator.learn(batch, step, drawn_s - prepared_s)
        outcomes = drawn.outcomes
        return StepResult(
            step_id=plan.step_id,
            token_counts=outcomes.token_counts,
            token_ids=outcomes.token_ids,
            ended_rows=outcomes.ended_rows,
            row_ends=outcomes.row_ends,
            errors=drawn.errors if pooled is None else drawn.errors + pooled.errors,
            logprobs=told + drawn.logprobs,
            draft_rows=() if drafts is None else tuple(step.rows[drafts.indices].tolist()),
            draft_token_counts=() if drafts is None else tuple(drafts.counts.tolist()),
            vectors=() if pooled is None else pooled.vectors,
            timings=StepTimings(
                prepare_s=prepared_s - began_s,
                forward_s=computed_s - prepared_s,
                sample_s=drawn_s - computed_s,
            ),
        )

    def _report_prompt(self, hidden: torch.Tensor, prompt: PromptTargets) -> tuple[RowLogprobs, ...]:
        return self._sampler.reporter.report_prompt(hidden, self._runner.project, prompt, self._batch.columns)

    def _pool(self, step: StepRows, hidden: torch.Tensor, wanted: PooledTokens) -> Pooled:
        parts = torch.split(hidden, wanted.counts.tolist())
        sums = torch.stack([part.sum(0, dtype=torch.float64) for part in parts])
        return self._pooler.pool(step, self._batch.columns, sums.cpu().numpy())
