"""The native engine: our model code in torch, stepped by the router."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from headrace.contract.clock import Clock, MonotonicClock
from headrace.contract.engine import EngineDescription
from headrace.contract.step import RowLogprobs, StepPlan, StepResult, StepTimings
from headrace.contract.vocabulary import Vocabulary
from headrace.shard.engines.native_loader import NativeLoader
from headrace.shard.engines.native_options import NativeOptions
from headrace.shard.input_batch import InputBatch, PromptTargets, StepRows
from headrace.shard.model_runner import ModelRunner
from headrace.shard.options import OptionValue, parse_options
from headrace.shard.pooler import Pooled, PooledTokens, Pooler
from headrace.shard.sampler import Sampler


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
    budget = loader.size_cache()
    return NativeEngine(loader.describe(budget), runner=loader.complete(budget), sampler=Sampler(loader.kernels))


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
        self._pooler = Pooler()

    @property
    def description(self) -> EngineDescription:
        """What the engine is."""
        return self._description

    def reset(self) -> None:
        """Empties the batch."""
        self._batch.clear()

    def load_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Takes the model's tokens; see Engine.load_vocabulary."""
        self._batch.grammars.load(vocabulary)

    def execute(self, plan: StepPlan) -> StepResult:
        """Runs one step; see Engine.execute."""
        began_s = self._clock.now()
        batch = self._batch
        step = batch.apply(plan)
        if len(step.rows) == 0:
            return StepResult(step_id=plan.step_id, token_counts=(0,) * step.row_count, token_ids=())
        # Made by a helper while the model runs, and waited for when a token is drawn.
        batch.grammars.begin(step.places[step.samples])
        flat = batch.flatten(step)
        wanted = self._pooler.select(step, flat, batch.columns) if step.pools.any() else None
        prompt = batch.prompt_targets(step, flat)
        asked = [tokens.indices for tokens in (wanted, prompt) if tokens is not None]
        hidden_indices = np.concatenate(asked) if asked else None
        inputs = self._runner.prepare(flat, batch.block_tables(step), step.samples, hidden_indices)
        prepared_s = self._clock.now()
        computed = self._runner.run(inputs)
        computed_s = self._clock.now()
        draw = self._sampler.draw(computed.logits, batch, step)
        pooled_count = 0 if wanted is None else len(wanted.indices)
        pooled = None if wanted is None else self._pool(step, computed.hidden[:pooled_count], wanted)
        told = () if prompt is None else self._report_prompt(computed.hidden[pooled_count:], prompt)
        failed = draw.failed if pooled is None else draw.failed | pooled.failed
        outcomes = batch.record(step, draw.token_ids, failed)
        return StepResult(
            step_id=plan.step_id,
            token_counts=outcomes.token_counts,
            token_ids=outcomes.token_ids,
            ended_rows=outcomes.ended_rows,
            row_ends=outcomes.row_ends,
            errors=draw.errors if pooled is None else draw.errors + pooled.errors,
            logprobs=told + draw.logprobs,
            vectors=() if pooled is None else pooled.vectors,
            timings=StepTimings(
                prepare_s=prepared_s - began_s,
                forward_s=computed_s - prepared_s,
                sample_s=self._clock.now() - computed_s,
            ),
        )

    def _report_prompt(self, hidden: torch.Tensor, prompt: PromptTargets) -> tuple[RowLogprobs, ...]:
        return self._sampler.reporter.report_prompt(hidden, self._runner.project, prompt, self._batch.columns)

    def _pool(self, step: StepRows, hidden: torch.Tensor, wanted: PooledTokens) -> Pooled:
        parts = torch.split(hidden, wanted.counts.tolist())
        sums = torch.stack([part.sum(0, dtype=torch.float64) for part in parts])
        return self._pooler.pool(step, self._batch.columns, sums.cpu().numpy())
