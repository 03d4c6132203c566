"""A batch of made-up prompts for an engine, and how long its steps take once it decodes."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.contract.sampling import LogprobOptions, RowStopRules, SamplingParams
from headrace.contract.step import AdmittedSequence, StepPlan
from headrace.shard.engine import Engine

BLOCK_SIZE = 16
GREEDY = SamplingParams(temperature=0.0)
_SILENT = LogprobOptions()
_VOCABULARY_SIZE = 40_000
"""The prompts' tokens are below this, and above the special ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a sequence asks for."""

    sampling: SamplingParams = GREEDY
    logprobs: LogprobOptions = _SILENT
    adapter: str = ""
    """Digest of an adapter that is loaded; empty for none."""


def first_step(rows: Sequence[Row], *, prompt_token_count: int, token_limit: int) -> StepPlan:
    """Returns the step that admits a sequence for each row and computes its whole prompt.

    Each has the blocks for `token_limit` tokens from the start and ends there, so
    the steps that follow need no plan of their own.
    """
    block_count = -(-token_limit // BLOCK_SIZE)
    admitted = tuple(
        AdmittedSequence(
            sequence_id=index,
            token_ids=_prompt(index, prompt_token_count),
            prompt_token_count=prompt_token_count,
            computed_token_count=0,
            block_ids=tuple(range(index * block_count, (index + 1) * block_count)),
            sampling=row.sampling,
            stopping=RowStopRules(token_limit=token_limit, end_of_sequence_token_ids=()),
            logprobs=row.logprobs,
            adapter=row.adapter,
        )
        for index, row in enumerate(rows)
    )
    return StepPlan(
        step_id=1,
        admitted=admitted,
        chunk_rows=tuple(range(len(rows))),
        chunk_token_counts=(prompt_token_count,) * len(rows),
    )


def decoding_step_s(
    engine: Engine, rows: Sequence[Row], *, prompt_token_count: int, warmup_count: int, step_count: int
) -> float:
    """Returns the median duration of the last `step_count` steps of rows that decode. The engine has to be empty."""
    token_limit = prompt_token_count + warmup_count + step_count + 2
    engine.execute(first_step(rows, prompt_token_count=prompt_token_count, token_limit=token_limit))
    durations_s = []
    for step_id in range(2, warmup_count + step_count + 2):
        began_s = time.perf_counter()
        engine.execute(StepPlan(step_id=step_id))
        durations_s.append(time.perf_counter() - began_s)
    return statistics.median(durations_s[warmup_count:])


def _prompt(index: int, token_count: int) -> tuple[int, ...]:
    """Returns tokens that no other row has in the same order, the same in every run."""
    return tuple(100 + (index * 7919 + place * 31) % (_VOCABULARY_SIZE - 100) for place in range(token_count))
