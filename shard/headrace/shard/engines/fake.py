"""An engine without a model: it finds its own mistakes, and everybody else's, in the tokens it produces.

Its KV cache holds token ids, raised by a number of the row's adapter. To draw, it reads a row's tokens back through the
block table and hashes them, so a wrong table, a block shared by mistake, a
chunk that was never computed or a token out of place changes the output.
"""

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.contract.adapter import AdapterOrder, LoadedAdapter
from headrace.contract.clock import Clock, MonotonicClock
from headrace.contract.engine import EngineDescription
from headrace.contract.errors import FeatureUnsupported, PlanRejected
from headrace.contract.step import RowError, RowLogprobs, RowVector, StepPlan, StepResult, StepTimings
from headrace.contract.vocabulary import Vocabulary
from headrace.shard.adapter_files import read_adapter_files
from headrace.shard.adapter_rows import AdapterLimits, AdapterRows
from headrace.shard.capabilities import FAKE_FIELDS
from headrace.shard.engines.fake_oracle import MULTIPLIER, FakeModel, adapter_offset, drawn_share, hidden_state
from headrace.shard.input_batch import InputBatch
from headrace.shard.options import OptionValue, parse_options
from headrace.shard.peft_config import parse_peft_config
from headrace.shard.pooler import Pooler
from headrace.shard.step_rows import FlatTokens, StepRows

POISON_EXIT_STATUS = 86
"""Exit status of a process that a poisonous token ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeOptions:
    """How the fake engine behaves."""

    vocabulary_size: int = 49152
    context_token_count: int = 4096
    block_size: int = 16
    block_count: int = 2048
    row_limit: int = 0
    token_limit: int = 0
    step_time_s: float = 0.0
    """How long each step pretends to take,"""
    token_time_s: float = 0.0
    """and how much longer for each token in it."""
    hidden_size: int = 16
    first_drawn_token_id: int = 32
    end_of_sequence_token_id: int = 2
    end_of_sequence_one_in: int = 0
    """One draw in this many ends the sequence; 0 means none."""
    poison_token_id: int = -1
    """Computing this token ends the process at once, as a crash would; -1 means none."""
    adapter_limit: int = 16
    """Most adapters at the same time; 0 makes it an engine without adapters."""
    error_token_id: int = -1
    """Computing this token fails its row; -1 means none."""

    @property
    def model(self) -> FakeModel:
        """What decides a token."""
        return FakeModel(
            vocabulary_size=self.vocabulary_size,
            first_drawn_token_id=self.first_drawn_token_id,
            end_of_sequence_token_id=self.end_of_sequence_token_id,
            end_of_sequence_one_in=self.end_of_sequence_one_in,
        )


def create_fake_engine(options: Mapping[str, OptionValue], progress: Callable[[str], None]) -> "FakeEngine":
    """Returns a fake engine with FakeOptions by name.

    Raises:
        StartupError: an option is wrong.
    """
    progress("the fake engine has nothing to load")
    return FakeEngine(parse_options(FakeOptions, options))


class FakeEngine:
    """A StepEngine's half that runs on the shard, without a model."""

    def __init__(
        self,
        options: FakeOptions | None = None,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Clock | None = None,
        on_step: Callable[[StepPlan], None] = lambda _: None,
    ) -> None:
        """Starts with an empty batch.

        Args:
            options: The defaults if None.
            sleep: Passes simulated time.
            clock: Tells how long a step took; the system's if None.
            on_step: Called before each step; what it raises, the step raises.
        """
        self._options = options = options or FakeOptions()
        self._sleep = sleep
        self._clock = clock or MonotonicClock()
        self._on_step = on_step
        self._model = options.model
        self._description = _describe(options)
        self._adapters = AdapterRows[int](AdapterLimits(count=options.adapter_limit, size_bytes=1 << 40))
        self._batch = InputBatch(self._description, self._adapters)
        self._pooler = Pooler()
        # What a block holds before it was ever computed is no token.
        self._blocks = np.full(options.block_count * options.block_size, -1, dtype=np.int64)
        self._powers = _powers(options.context_token_count)

    @property
    def description(self) -> EngineDescription:
        """What the engine is."""
        return self._description

    def enter_thread(self) -> None:
        """Does nothing: there is nothing to set up."""

    def reset(self) -> None:
        """Empties the batch."""
        self._batch.clear()

    def load_vocabulary(self, _vocabulary: Vocabulary) -> None:
        """Refuses: token ids are all that this engine knows."""
        raise FeatureUnsupported("constraint", "the fake engine holds no completion to a grammar")

    def prepare_adapter(self, order: AdapterOrder) -> Callable[[], LoadedAdapter]:
        """Reads an adapter's files, of which only their digest and the rank count."""
        if self._options.adapter_limit == 0:
            raise FeatureUnsupported("adapter", "this fake engine has no adapters")
        files = read_adapter_files(order)
        config = parse_peft_config(files.config, ("model.layers.0.mlp.up_proj",))
        loaded = LoadedAdapter(digest=files.digest, rank=config.rank, size_bytes=len(files.weights))
        return lambda: self._adapters.add(loaded, adapter_offset(files.digest))

    def drop_adapter(self, digest: str) -> None:
        """Takes an adapter from sequences to come."""
        self._adapters.drop(digest)

    def execute(self, plan: StepPlan) -> StepResult:
        """Runs one step; see Engine.execute."""
        self._on_step(plan)
        began_s = self._clock.now()
        step = self._batch.apply(plan)
        flat = self._batch.flatten(step)
        prepared_s = self._clock.now()
        self._compute(step, flat)
        computed_s = self._clock.now()
        errors = self._find_errors(step, flat)
        failed = np.isin(step.rows, [error.row for error in errors])
        token_ids = self._draw(step, flat)
        logprobs = self._prompt_logprobs(step, flat) + self._logprobs(step, failed, token_ids)
        vectors = self._pool(step, flat, failed) if step.pools.any() else ()
        outcomes = self._batch.record(step, token_ids, failed)
        return StepResult(
            step_id=plan.step_id,
            token_counts=outcomes.token_counts,
            token_ids=outcomes.token_ids,
            ended_rows=outcomes.ended_rows,
            row_ends=outcomes.row_ends,
            errors=errors,
            logprobs=logprobs,
            timings=StepTimings(
                prepare_s=prepared_s - began_s,
                forward_s=computed_s - prepared_s,
                sample_s=self._clock.now() - computed_s,
            ),
            vectors=vectors,
        )

    def _compute(self, step: StepRows, flat: FlatTokens) -> None:
        if len(np.unique(flat.slot_ids)) < len(flat.slot_ids):
            raise PlanRejected("two tokens of the step have the same place in the KV cache")
        if (flat.token_ids == self._options.poison_token_id).any():
            os._exit(POISON_EXIT_STATUS)
        self._blocks[flat.slot_ids] = flat.token_ids
        if not self._adapters.is_idle:
            offsets, adapters = self._adapters.select(step.places)
            row_offsets = np.array([*offsets, 0], dtype=np.int64)[adapters]
            self._blocks[flat.slot_ids] += np.repeat(row_offsets, step.chunk_counts)
        duration_s = self._options.step_time_s + self._options.token_time_s * len(flat.token_ids)
        if duration_s > 0:
            self._sleep(duration_s)

    def _find_errors(self, step: StepRows, flat: FlatTokens) -> tuple[RowError, ...]:
        wrong = (flat.token_ids == self._options.error_token_id).nonzero()[0]
        rows = step.rows[np.unique(np.searchsorted(flat.query_starts, wrong, side="right") - 1)]
        detail = f"token {self._options.error_token_id} fails its row"
        return tuple(RowError(row, "FAKE_ERROR", detail) for row in rows.tolist())

    def _draw(self, step: StepRows, flat: FlatTokens) -> NDArray[np.int64]:
        places, contexts = step.places[step.samples], flat.context_lengths[step.samples]
        columns = self._batch.columns
        seeds = np.where(columns.temperatures[places] > 0, columns.seeds[places], 0)
        barred: list[set[int]] = [set() for _ in places]
        for index, token_id in zip(*self._batch.barred_endings(places), strict=True):
            barred[index].add(int(token_id))
        drawn = [
            self._model.draw(
                self._read_digest(int(place), int(context)),
                position=int(context),
                seed=int(seed.astype(np.uint64)),
                barred=frozenset(row_barred),
            )
            for place, context, seed, row_barred in zip(places, contexts, seeds, barred, strict=True)
        ]
        return np.array(drawn, dtype=np.int64)

    def _pool(self, step: StepRows, flat: FlatTokens, failed: NDArray[np.bool_]) -> tuple[RowVector, ...]:
        columns, size = self._batch.columns, self._options.hidden_size
        wanted = self._pooler.select(step, flat, columns)
        indices = np.split(wanted.indices, wanted.counts.cumsum()[:-1])
        contexts = flat.context_lengths[step.pools].tolist()
        sums = []
        for place, context, row_indices in zip(step.places[step.pools].tolist(), contexts, indices, strict=True):
            digests = self._read_digests(place, context)[flat.positions[row_indices]]
            sums.append(np.array([hidden_state(digest, size) for digest in digests.tolist()]).sum(axis=0))
        pooled = self._pooler.pool(step, columns, np.array(sums))
        failed_rows = set(step.rows[failed].tolist())
        return tuple(vector for vector in pooled.vectors if vector.row not in failed_rows)

    def _read_digest(self, place: int, context: int) -> int:
        """Returns the hash of a row's tokens, as the blocks hold them."""
        return int(self._read_digests(place, context)[-1])

    def _read_digests(self, place: int, context: int) -> NDArray[np.uint64]:
        """Returns [position] the hash of a row's tokens up to each, as the blocks hold them."""
        block_size = self._options.block_size
        positions = np.arange(context)
        blocks = self._batch.columns.block_tables[place, positions // block_size].astype(np.int64)
        token_ids = self._blocks[blocks * block_size + positions % block_size]
        return np.cumsum((token_ids + 1).astype(np.uint64) * self._powers[:context], dtype=np.uint64)

    def _logprobs(
        self, step: StepRows, failed: NDArray[np.bool_], token_ids: NDArray[np.int64]
    ) -> tuple[RowLogprobs, ...]:
        columns = self._batch.columns
        places = step.places[step.samples]
        reported = columns.reports_logprobs[places] & ~failed[step.samples]
        results = []
        for index in reported.nonzero()[0]:
            count = int(columns.top_logprob_counts[places[index]])
            report = self._report(int(token_ids[index]), count)
            results.append(
                RowLogprobs(
                    row=int(step.rows[step.samples][index]),
                    is_prompt=False,
                    logprobs=(report.logprob,),
                    ranks=(1,),
                    top_token_ids=report.rivals,
                    top_logprobs=report.rival_logprobs,
                )
            )
        return tuple(results)

    def _prompt_logprobs(self, step: StepRows, flat: FlatTokens) -> tuple[RowLogprobs, ...]:
        """Reports of prompt tokens what it would if it had drawn them."""
        targets = self._batch.prompt_targets(step, flat)
        if targets is None:
            return ()
        results = []
        for row in dict.fromkeys(targets.rows.tolist()):
            token_ids = targets.token_ids[targets.rows == row].tolist()
            count = int(self._batch.columns.top_logprob_counts[targets.places[targets.rows == row][0]])
            reports = [self._report(token_id, count) for token_id in token_ids]
            results.append(
                RowLogprobs(
                    row=row,
                    is_prompt=True,
                    logprobs=tuple(report.logprob for report in reports),
                    ranks=(1,) * len(reports),
                    top_token_ids=tuple(rival for report in reports for rival in report.rivals),
                    top_logprobs=tuple(value for report in reports for value in report.rival_logprobs),
                )
            )
        return tuple(results)

    def _report(self, token_id: int, rival_count: int) -> "_Report":
        """Makes up a distribution: a share of the mass for a token, and of the rest for the next id, and so on."""
        share = drawn_share(token_id)
        rivals = (token_id + np.arange(rival_count)) % self._options.vocabulary_size
        rival_logprobs = math.log(share) + math.log1p(-share) * np.arange(rival_count)
        return _Report(math.log(share), tuple(rivals.tolist()), tuple(rival_logprobs.tolist()))


class _Report(NamedTuple):
    logprob: float
    rivals: tuple[int, ...]
    rival_logprobs: tuple[float, ...]


def _describe(options: FakeOptions) -> EngineDescription:
    return EngineDescription(
        engine="fake",
        architecture="fake",
        weight_type="none",
        vocabulary_size=options.vocabulary_size,
        context_token_count=options.context_token_count,
        block_size=options.block_size,
        block_count=options.block_count,
        steps_in_flight=2,
        supported_fields=FAKE_FIELDS if options.adapter_limit else FAKE_FIELDS - {"adapter"},
        end_of_sequence_token_ids=(options.end_of_sequence_token_id,),
        row_limit=options.row_limit,
        token_limit=options.token_limit,
        hidden_size=options.hidden_size,
    )


def _powers(count: int) -> NDArray[np.uint64]:
    powers = np.full(count, MULTIPLIER, dtype=np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)
