"""Converts the step contract to and from `headrace.internal.v1`.

Columns are handed over whole: nothing here loops over the rows of a batch in
Python, only over admissions, endings, errors and log-probabilities that were asked for.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Final

from google.protobuf.message import Message

from headrace.contract.engine import EngineDescription
from headrace.contract.pooling import Pooling, PoolingOptions
from headrace.contract.sampling import (
    BannedText,
    LengthPenalty,
    LogprobOptions,
    RowStopRules,
    SamplingParams,
    Watermark,
)
from headrace.contract.step import (
    AdmittedSequence,
    RowEnd,
    RowError,
    RowLogprobs,
    RowVector,
    StepPlan,
    StepResult,
    StepTimings,
)
from headrace.internal.v1 import shard_service_pb2 as pb

_NEVER = -1
"""`length_penalty_start_index` of a sequence without a length penalty."""

_PLAN_COLUMNS: Final = tuple(field.name for field in fields(StepPlan) if field.name != "admitted")
"""Fields that the message has as they are."""

_BANNED_COLUMNS = tuple(field.name for field in fields(BannedText) if field.name != "state_count")

_POOLING_TO_PROTO = {Pooling.MEAN: pb.POOLING_MEAN, Pooling.LAST: pb.POOLING_LAST}
_POOLING_FROM_PROTO = {value: pooling for pooling, value in _POOLING_TO_PROTO.items()}


def plan_to_proto(plan: StepPlan) -> pb.StepRequest:
    """Returns the message of a plan.

    Raises:
        ValueError: an integer does not fit its field.
    """
    columns: dict[str, Any] = {name: column for name in _PLAN_COLUMNS if (column := getattr(plan, name))}
    request = pb.StepRequest(**columns)
    if plan.admitted:
        request.admitted.extend(map(_admitted_to_proto, plan.admitted))
    return request


def plan_from_proto(request: pb.StepRequest) -> StepPlan:
    """Returns the plan in a message.

    Raises:
        ValueError: an enum value is of a later version.
    """
    columns: dict[str, Any] = {"step_id": 0}
    return StepPlan(**columns | _read_fields(request, _PLAN_READERS))


def result_to_proto(result: StepResult) -> pb.StepResponse:
    """Returns the message of a result.

    Raises:
        ValueError: an integer does not fit its field.
    """
    response = pb.StepResponse(step_id=result.step_id, token_counts=result.token_counts, token_ids=result.token_ids)
    timings, read = response.timings, result.timings
    timings.queued_s = read.queued_s
    timings.prepare_s = read.prepare_s
    timings.forward_s = read.forward_s
    timings.sample_s = read.sample_s
    if result.ended_rows:
        response.ended_rows.extend(result.ended_rows)
    if result.row_ends:
        response.row_ends.extend(pb.RowEnd.ValueType(end) for end in result.row_ends)
    if result.errors:
        response.errors.extend(pb.RowError(row=e.row, reason=e.reason, detail=e.detail) for e in result.errors)
    if result.logprobs:
        response.logprobs.extend(map(_logprobs_to_proto, result.logprobs))
    if result.vectors:
        response.vectors.extend(pb.RowVector(row=vector.row, values=vector.values) for vector in result.vectors)
    if result.draft_rows:
        response.draft_rows.extend(result.draft_rows)
    if result.draft_token_counts:
        response.draft_token_counts.extend(result.draft_token_counts)
    return response


def result_from_proto(response: pb.StepResponse) -> StepResult:
    """Returns the result in a message.

    Raises:
        ValueError: an enum value is of a later version.
    """
    columns: dict[str, Any] = {"step_id": 0, "token_counts": (), "token_ids": ()}
    return StepResult(**columns | _read_fields(response, _RESULT_READERS))


def _read_fields(message: Message, readers: dict[str, Callable[[Any], object]]) -> dict[str, Any]:
    """Returns what the fields hold that are set.

    NOTE: to read a field that is not set costs as much as one that is, and a step that goes on has few of them.
    """
    return {field.name: readers[field.name](value) for field, value in message.ListFields()}


def _timings_from_proto(timings: pb.StepTimings) -> StepTimings:
    return StepTimings(
        queued_s=timings.queued_s,
        prepare_s=timings.prepare_s,
        forward_s=timings.forward_s,
        sample_s=timings.sample_s,
    )


def description_to_proto(description: EngineDescription) -> pb.EngineDescription:
    """Returns the message of an engine's description."""
    return pb.EngineDescription(
        engine=description.engine,
        architecture=description.architecture,
        weight_type=description.weight_type,
        vocabulary_size=description.vocabulary_size,
        context_token_count=description.context_token_count,
        block_size=description.block_size,
        block_count=description.block_count,
        steps_in_flight=description.steps_in_flight,
        supported_fields=sorted(description.supported_fields),
        end_of_sequence_token_ids=description.end_of_sequence_token_ids,
        row_limit=description.row_limit,
        token_limit=description.token_limit,
        hidden_size=description.hidden_size,
        draft_token_limit=description.draft_token_limit,
    )


def description_from_proto(message: pb.EngineDescription) -> EngineDescription:
    """Returns the engine's description in a message."""
    return EngineDescription(
        engine=message.engine,
        architecture=message.architecture,
        weight_type=message.weight_type,
        vocabulary_size=message.vocabulary_size,
        context_token_count=message.context_token_count,
        block_size=message.block_size,
        block_count=message.block_count,
        steps_in_flight=message.steps_in_flight,
        supported_fields=frozenset(message.supported_fields),
        end_of_sequence_token_ids=tuple(message.end_of_sequence_token_ids),
        row_limit=message.row_limit,
        token_limit=message.token_limit,
        hidden_size=message.hidden_size,
        draft_token_limit=message.draft_token_limit,
    )


def _admitted_to_proto(sequence: AdmittedSequence) -> pb.AdmittedSequence:
    stopping, logprobs = sequence.stopping, sequence.logprobs
    message = pb.AdmittedSequence(
        sequence_id=sequence.sequence_id,
        token_ids=sequence.token_ids,
        prompt_token_count=sequence.prompt_token_count,
        computed_token_count=sequence.computed_token_count,
        block_ids=sequence.block_ids,
        sampling=_sampling_to_proto(sequence.sampling),
        stopping=pb.StopRules(
            token_limit=stopping.token_limit,
            min_new_token_count=stopping.min_new_token_count,
            end_of_sequence_token_ids=stopping.end_of_sequence_token_ids,
            stop_token_ids=stopping.stop_token_ids,
        ),
        logprobs=pb.LogprobOptions(
            sampled=logprobs.sampled,
            top_count=logprobs.top_count,
            prompt=logprobs.prompt,
            processed=logprobs.processed,
        ),
        adapter=sequence.adapter,
        grammar=sequence.grammar,
        may_draft=sequence.may_draft,
        trace_parent=sequence.trace_parent,
    )
    if sequence.pooling is not None:
        message.pooling.pooling = _POOLING_TO_PROTO[sequence.pooling.pooling]
        message.pooling.normalize = sequence.pooling.is_normalized
        message.pooling.dimension_count = sequence.pooling.dimension_count
    return message


def _admitted_from_proto(message: pb.AdmittedSequence) -> AdmittedSequence:
    stopping, logprobs = message.stopping, message.logprobs
    return AdmittedSequence(
        sequence_id=message.sequence_id,
        token_ids=tuple(message.token_ids),
        prompt_token_count=message.prompt_token_count,
        computed_token_count=message.computed_token_count,
        block_ids=tuple(message.block_ids),
        sampling=_sampling_from_proto(message.sampling),
        stopping=RowStopRules(
            token_limit=stopping.token_limit,
            min_new_token_count=stopping.min_new_token_count,
            end_of_sequence_token_ids=tuple(stopping.end_of_sequence_token_ids),
            stop_token_ids=tuple(stopping.stop_token_ids),
        ),
        logprobs=LogprobOptions(
            sampled=logprobs.sampled,
            top_count=logprobs.top_count,
            prompt=logprobs.prompt,
            processed=logprobs.processed,
        ),
        grammar=message.grammar,
        pooling=_pooling_from_proto(message.pooling) if message.HasField("pooling") else None,
        adapter=message.adapter,
        may_draft=message.may_draft,
        trace_parent=message.trace_parent,
    )


def _pooling_from_proto(message: pb.PoolingOptions) -> PoolingOptions:
    pooling = _POOLING_FROM_PROTO.get(message.pooling)
    if pooling is None:
        raise ValueError(f"pooling {message.pooling} is not known here")
    return PoolingOptions(pooling=pooling, is_normalized=message.normalize, dimension_count=message.dimension_count)


def _sampling_to_proto(sampling: SamplingParams) -> pb.SamplingParams:
    penalty, mark = sampling.length_penalty, sampling.watermark
    return pb.SamplingParams(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        typical_p=sampling.typical_p,
        seed=sampling.seed,
        repetition_penalty=sampling.repetition_penalty,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        bias_token_ids=[token_id for token_id, _ in sampling.logit_bias],
        biases=[bias for _, bias in sampling.logit_bias],
        length_penalty_start_index=_NEVER if penalty is None else penalty.start_index,
        length_penalty_decay_factor=1.0 if penalty is None else penalty.decay_factor,
        watermark_key=0 if mark is None else mark.key,
        watermark_gamma=0.0 if mark is None else mark.gamma,
        watermark_delta=0.0 if mark is None else mark.delta,
        banned_text=None if sampling.banned_text is None else _banned_to_proto(sampling.banned_text),
    )


def _sampling_from_proto(message: pb.SamplingParams) -> SamplingParams:
    penalty = None
    if message.length_penalty_start_index != _NEVER:
        penalty = LengthPenalty(
            start_index=message.length_penalty_start_index, decay_factor=message.length_penalty_decay_factor
        )
    mark = None
    if message.watermark_key:
        mark = Watermark(key=message.watermark_key, gamma=message.watermark_gamma, delta=message.watermark_delta)
    return SamplingParams(
        temperature=message.temperature,
        top_k=message.top_k,
        top_p=message.top_p,
        min_p=message.min_p,
        typical_p=message.typical_p,
        seed=message.seed,
        repetition_penalty=message.repetition_penalty,
        frequency_penalty=message.frequency_penalty,
        presence_penalty=message.presence_penalty,
        logit_bias=tuple(zip(message.bias_token_ids, message.biases, strict=True)),
        length_penalty=penalty,
        watermark=mark,
        banned_text=_banned_from_proto(message.banned_text) if message.HasField("banned_text") else None,
    )


def _banned_to_proto(text: BannedText) -> pb.BannedText:
    columns = {name: getattr(text, name) for name in _BANNED_COLUMNS}
    return pb.BannedText(state_count=text.state_count, **columns)


def _banned_from_proto(message: pb.BannedText) -> BannedText:
    columns = {name: tuple(getattr(message, name)) for name in _BANNED_COLUMNS}
    return BannedText(state_count=message.state_count, **columns)


def _logprobs_to_proto(logprobs: RowLogprobs) -> pb.RowLogprobs:
    return pb.RowLogprobs(
        row=logprobs.row,
        prompt=logprobs.is_prompt,
        logprobs=logprobs.logprobs,
        ranks=logprobs.ranks,
        top_token_ids=logprobs.top_token_ids,
        top_logprobs=logprobs.top_logprobs,
    )


def _logprobs_from_proto(message: pb.RowLogprobs) -> RowLogprobs:
    return RowLogprobs(
        row=message.row,
        is_prompt=message.prompt,
        logprobs=tuple(message.logprobs),
        ranks=tuple(message.ranks),
        top_token_ids=tuple(message.top_token_ids),
        top_logprobs=tuple(message.top_logprobs),
    )


_PLAN_READERS: Final[dict[str, Callable[[Any], object]]] = {field.name: tuple for field in fields(StepPlan)} | {
    "step_id": int,
    "admitted": lambda sequences: tuple(map(_admitted_from_proto, sequences)),
}
_RESULT_READERS: Final[dict[str, Callable[[Any], object]]] = {field.name: tuple for field in fields(StepResult)} | {
    "step_id": int,
    "row_ends": lambda ends: tuple(map(RowEnd, ends)),
    "errors": lambda errors: tuple(RowError(row=e.row, reason=e.reason, detail=e.detail) for e in errors),
    "logprobs": lambda logprobs: tuple(map(_logprobs_from_proto, logprobs)),
    "vectors": lambda vectors: tuple(RowVector(vector.row, vector.values) for vector in vectors),
    "timings": _timings_from_proto,
}
"""What makes a field of the contract of one of the message."""
