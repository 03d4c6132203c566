"""Converts the step contract to and from `headrace.internal.v1`.

Columns are handed over whole: nothing here loops over the rows of a batch in
Python, only over admissions, endings, errors and log-probabilities that were asked for.
"""

from dataclasses import fields

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

_BANNED_COLUMNS = tuple(field.name for field in fields(BannedText) if field.name != "state_count")

_POOLING_TO_PROTO = {Pooling.MEAN: pb.POOLING_MEAN, Pooling.LAST: pb.POOLING_LAST}
_POOLING_FROM_PROTO = {value: pooling for pooling, value in _POOLING_TO_PROTO.items()}


def plan_to_proto(plan: StepPlan) -> pb.StepRequest:
    """Returns the message of a plan.

    Raises:
        ValueError: an integer does not fit its field.
    """
    return pb.StepRequest(
        step_id=plan.step_id,
        released_sequence_ids=plan.released_sequence_ids,
        admitted=[_admitted_to_proto(sequence) for sequence in plan.admitted],
        block_rows=plan.block_rows,
        block_counts=plan.block_counts,
        block_ids=plan.block_ids,
        chunk_rows=plan.chunk_rows,
        chunk_token_counts=plan.chunk_token_counts,
        held_rows=plan.held_rows,
    )


def plan_from_proto(request: pb.StepRequest) -> StepPlan:
    """Returns the plan in a message.

    Raises:
        ValueError: an enum value is of a later version.
    """
    return StepPlan(
        step_id=request.step_id,
        released_sequence_ids=tuple(request.released_sequence_ids),
        admitted=tuple(_admitted_from_proto(sequence) for sequence in request.admitted),
        block_rows=tuple(request.block_rows),
        block_counts=tuple(request.block_counts),
        block_ids=tuple(request.block_ids),
        chunk_rows=tuple(request.chunk_rows),
        chunk_token_counts=tuple(request.chunk_token_counts),
        held_rows=tuple(request.held_rows),
    )


def result_to_proto(result: StepResult) -> pb.StepResponse:
    """Returns the message of a result.

    Raises:
        ValueError: an integer does not fit its field.
    """
    timings = result.timings
    return pb.StepResponse(
        step_id=result.step_id,
        token_counts=result.token_counts,
        token_ids=result.token_ids,
        ended_rows=result.ended_rows,
        row_ends=[pb.RowEnd.ValueType(end) for end in result.row_ends],
        errors=[pb.RowError(row=error.row, reason=error.reason, detail=error.detail) for error in result.errors],
        logprobs=[_logprobs_to_proto(logprobs) for logprobs in result.logprobs],
        vectors=[pb.RowVector(row=vector.row, values=vector.values) for vector in result.vectors],
        draft_rows=result.draft_rows,
        draft_token_counts=result.draft_token_counts,
        timings=pb.StepTimings(
            queued_s=timings.queued_s,
            prepare_s=timings.prepare_s,
            forward_s=timings.forward_s,
            sample_s=timings.sample_s,
        ),
    )


def result_from_proto(response: pb.StepResponse) -> StepResult:
    """Returns the result in a message.

    Raises:
        ValueError: an enum value is of a later version.
    """
    timings = response.timings
    return StepResult(
        step_id=response.step_id,
        token_counts=tuple(response.token_counts),
        token_ids=tuple(response.token_ids),
        ended_rows=tuple(response.ended_rows),
        row_ends=tuple(map(RowEnd, response.row_ends)),
        errors=tuple(RowError(row=error.row, reason=error.reason, detail=error.detail) for error in response.errors),
        logprobs=tuple(_logprobs_from_proto(logprobs) for logprobs in response.logprobs),
        vectors=tuple(RowVector(vector.row, vector.values) for vector in response.vectors),
        draft_rows=tuple(response.draft_rows),
        draft_token_counts=tuple(response.draft_token_counts),
        timings=StepTimings(
            queued_s=timings.queued_s,
            prepare_s=timings.prepare_s,
            forward_s=timings.forward_s,
            sample_s=timings.sample_s,
        ),
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
