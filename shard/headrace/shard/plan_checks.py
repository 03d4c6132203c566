"""The checks that a step plan keeps the contract, but for those that need the rows' state."""

from itertools import pairwise

from headrace.contract.engine import EngineDescription
from headrace.contract.errors import PlanRejected
from headrace.contract.pooling import Pooling, PoolingOptions
from headrace.contract.sampling import LogprobOptions
from headrace.contract.step import AdmittedSequence, StepPlan
from headrace.shard.capabilities import check_supported


def check_columns(plan: StepPlan, *, row_count: int, block_count: int) -> None:
    """Checks the columns of a plan against each other and against the number of rows.

    Raises:
        PlanRejected: naming the column.
    """
    # Most plans change nothing.
    if not (plan.block_rows or plan.block_counts or plan.block_ids) and not (
        plan.chunk_rows or plan.chunk_token_counts or plan.held_rows
    ):
        return
    _check_lengths("block_rows", len(plan.block_rows), "block_counts", len(plan.block_counts))
    _check_lengths("block_ids", len(plan.block_ids), "sum of block_counts", sum(plan.block_counts))
    _check_lengths("chunk_rows", len(plan.chunk_rows), "chunk_token_counts", len(plan.chunk_token_counts))
    _check_rows("block_rows", plan.block_rows, row_count)
    _check_rows("chunk_rows", plan.chunk_rows, row_count)
    _check_rows("held_rows", plan.held_rows, row_count)
    _check_positive("block_counts", plan.block_counts)
    _check_positive("chunk_token_counts", plan.chunk_token_counts)
    _check_range("block_ids", plan.block_ids, block_count)
    if both := set(plan.chunk_rows) & set(plan.held_rows):
        raise PlanRejected(f"row {min(both)} is in chunk_rows and in held_rows")


def check_admitted(sequence: AdmittedSequence, description: EngineDescription) -> None:
    """Checks one admitted sequence by itself.

    Raises:
        PlanRejected: naming the sequence and the field.
    """
    where = f"sequence {sequence.sequence_id}:"
    token_count = len(sequence.token_ids)
    if not 0 <= sequence.computed_token_count < token_count:
        raise PlanRejected(f"{where} computed_token_count {sequence.computed_token_count} is not in [0, {token_count})")
    if not 1 <= sequence.prompt_token_count <= token_count:
        raise PlanRejected(f"{where} prompt_token_count {sequence.prompt_token_count} is not in [1, {token_count}]")
    limit = sequence.stopping.token_limit
    if not token_count < limit <= description.context_token_count:
        raise PlanRejected(
            f"{where} token_limit {limit} is not in ({token_count}, {description.context_token_count}],"
            " between the tokens it has and the context"
        )
    _check_range(f"{where} token_ids", sequence.token_ids, description.vocabulary_size)
    _check_range(f"{where} block_ids", sequence.block_ids, description.block_count)
    if len(set(sequence.block_ids)) < len(sequence.block_ids):
        raise PlanRejected(f"{where} block_ids names a block twice")
    bias_token_ids = tuple(token_id for token_id, _ in sequence.sampling.logit_bias)
    _check_range(f"{where} logit_bias", bias_token_ids, description.vocabulary_size)
    banned = sequence.sampling.banned_text
    if banned is not None:
        _check_range(f"{where} banned_text", banned.token_ids + banned.end_token_ids, description.vocabulary_size)
    if sequence.pooling is not None:
        _check_pooling(where, sequence, sequence.pooling, description)
    check_supported(sequence, description.supported_fields)


def _check_pooling(
    where: str, sequence: AdmittedSequence, pooling: PoolingOptions, description: EngineDescription
) -> None:
    if description.hidden_size == 0:
        raise PlanRejected(f"{where} this engine cannot pool hidden states")
    if not 0 <= pooling.dimension_count <= description.hidden_size:
        raise PlanRejected(
            f"{where} dimension_count {pooling.dimension_count} is not in [0, {description.hidden_size}]"
        )
    if pooling.pooling is Pooling.MEAN and sequence.computed_token_count > 0:
        raise PlanRejected(f"{where} the mean needs every hidden state, and {sequence.computed_token_count} are gone")
    if sequence.prompt_token_count < len(sequence.token_ids):
        raise PlanRejected(f"{where} a sequence that is pooled generates nothing")
    if sequence.logprobs != LogprobOptions() or sequence.grammar:
        raise PlanRejected(f"{where} a sequence that is pooled has neither log-probabilities nor a grammar")


def _check_lengths(name: str, length: int, other_name: str, other_length: int) -> None:
    if length != other_length:
        raise PlanRejected(f"{name} has {length} entries, {other_name} is {other_length}")


def _check_rows(name: str, rows: tuple[int, ...], row_count: int) -> None:
    _check_range(name, rows, row_count)
    if any(row >= following for row, following in pairwise(rows)):
        raise PlanRejected(f"{name} is not ascending")


def _check_range(name: str, values: tuple[int, ...], limit: int) -> None:
    if values and not (min(values) >= 0 and max(values) < limit):
        wrong = next(value for value in values if not 0 <= value < limit)
        raise PlanRejected(f"{name} has {wrong}, which is not in [0, {limit})")


def _check_positive(name: str, values: tuple[int, ...]) -> None:
    if values and min(values) < 1:
        raise PlanRejected(f"{name} has {min(values)}, which is not positive")
