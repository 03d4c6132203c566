"""From the messages of `headrace.v1` to the client's own types."""

from collections.abc import Iterable
from enum import StrEnum
from typing import TypeVar

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration

from headrace.client.chat import ToolCall
from headrace.client.operations import (
    Adapter,
    ComponentHealth,
    EmbeddingLimits,
    Health,
    HealthCheck,
    HealthState,
    Load,
    Model,
    ModelLimits,
    ProbeResult,
    Replica,
    ReplicaHealth,
    ReplicaLoad,
    ReplicaState,
    StepProfile,
)
from headrace.client.results import (
    Completion,
    CompletionEnd,
    Delta,
    Embedding,
    Embeddings,
    Finished,
    FinishReason,
    Generation,
    Started,
    TextSpan,
    Timings,
    Tokenization,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from headrace.contract.sampling import LengthPenalty, SamplingOptions
from headrace.v1 import embedding_service_pb2 as embedding_pb
from headrace.v1 import generate_service_pb2 as generate_pb
from headrace.v1 import health_service_pb2 as health_pb
from headrace.v1 import router_service_pb2 as router_pb
from headrace.v1 import sampling_pb2 as sampling_pb

StateT = TypeVar("StateT", bound=StrEnum)


def generation_from_proto(response: generate_pb.GenerateResponse) -> Generation:
    """Returns a whole answer."""
    return Generation(
        request_id=response.request_id,
        model=response.model,
        completions=tuple(
            Completion(
                index=completion.index,
                text=completion.text,
                token_ids=tuple(completion.token_ids),
                logprobs=_logprobs(completion.logprobs),
                end=_end(completion.end),
                reasoning=completion.reasoning,
                tool_calls=tuple(
                    ToolCall(id=call.id, name=call.name, arguments_json=call.arguments_json)
                    for call in completion.tool_calls
                ),
            )
            for completion in response.completions
        ),
        usage=_usage(response.usage),
        timings=_timings(response.timings),
        seed=response.seed,
        prompt_logprobs=_logprobs(response.prompt_logprobs),
    )


def started_from_proto(started: generate_pb.GenerationStarted) -> Started:
    """Returns the first event of a stream."""
    return Started(
        request_id=started.request_id,
        model=started.model,
        prompt_token_count=started.prompt_token_count,
        cached_token_count=started.cached_token_count,
        seed=started.seed,
        prompt_logprobs=_logprobs(started.prompt_logprobs),
    )


def delta_from_proto(delta: generate_pb.GenerationDelta) -> Delta:
    """Returns a piece of a stream."""
    return Delta(
        index=delta.index,
        text=delta.text,
        token_ids=tuple(delta.token_ids),
        logprobs=_logprobs(delta.logprobs),
        reasoning=delta.reasoning,
        tool_calls=tuple(
            ToolCallDelta(index=piece.index, id=piece.id, name=piece.name, arguments_json=piece.arguments_json)
            for piece in delta.tool_calls
        ),
    )


def finished_from_proto(finished: generate_pb.GenerationFinished) -> Finished:
    """Returns the last event of a stream."""
    return Finished(
        ends=tuple(_end(end) for end in finished.ends),
        usage=_usage(finished.usage),
        timings=_timings(finished.timings),
    )


def embeddings_from_proto(response: embedding_pb.EmbedResponse) -> Embeddings:
    """Returns the vectors of an answer."""
    return Embeddings(
        request_id=response.request_id,
        model=response.model,
        embeddings=tuple(
            Embedding(values=tuple(embedding.values), token_count=embedding.token_count)
            for embedding in response.embeddings
        ),
        token_count=response.usage.token_count,
        cached_token_count=response.usage.cached_token_count,
        queued_s=_seconds(response.queued),
        computed_s=_seconds(response.computed),
    )


def tokenization_from_proto(response: generate_pb.TokenizeResponse) -> Tokenization:
    """Returns the token ids of a prompt."""
    return Tokenization(
        token_ids=tuple(response.token_ids),
        text=response.text,
        spans=tuple(TextSpan(span.start, span.end) for span in response.spans),
    )


def model_from_proto(model: router_pb.Model) -> Model:
    """Returns a served model."""
    limits = model.limits
    has_default_bound = model.HasField("default_max_new_token_count")
    return Model(
        name=model.name,
        engine=model.engine,
        architecture=model.architecture,
        weight_type=model.weight_type,
        limits=ModelLimits(
            context_token_count=limits.context_token_count,
            prompt_token_count=limits.prompt_token_count,
            vocabulary_size=limits.vocabulary_size,
            stop_sequence_count=limits.stop_sequence_count,
            stop_sequence_size_bytes=limits.stop_sequence_size_bytes,
            stop_token_count=limits.stop_token_count,
            completion_count=limits.completion_count,
            top_logprob_count=limits.top_logprob_count,
            message_size_bytes=limits.message_size_bytes,
        ),
        default_sampling=_sampling(model.default_sampling),
        default_max_new_token_count=model.default_max_new_token_count if has_default_bound else None,
        supported_fields=tuple(model.supported_fields),
        end_of_sequence_token_ids=tuple(model.end_of_sequence_token_ids),
        has_chat_template=model.has_chat_template,
        tool_format=model.tool_format,
        reasoning_format=model.reasoning_format,
        embedding=_embedding_limits(model.embedding) if model.HasField("embedding") else None,
    )


def replica_from_proto(replica: router_pb.Replica) -> Replica:
    """Returns a replica and its load."""
    load = replica.load
    return Replica(
        id=replica.id,
        addresses=tuple(replica.addresses),
        model=replica.model,
        state=_state(ReplicaState, router_pb.ReplicaState.DESCRIPTOR, replica.state),
        detail=replica.detail,
        load=ReplicaLoad(
            waiting_count=load.waiting_count,
            running_count=load.running_count,
            leased_block_count=load.leased_block_count,
            cached_block_count=load.cached_block_count,
            total_block_count=load.total_block_count,
            step_count=load.step_count,
            computed_token_count=load.computed_token_count,
            generated_token_count=load.generated_token_count,
            cached_token_count=load.cached_token_count,
            preemption_count=load.preemption_count,
            row_count=load.row_count,
            profile=_profile(load.profile),
            drafted_token_count=load.drafted_token_count,
            accepted_token_count=load.accepted_token_count,
        ),
        restart_count=replica.restart_count,
    )


def _profile(profile: router_pb.StepProfile) -> StepProfile:
    return StepProfile(
        step_count=profile.step_count,
        queued_s=_seconds(profile.queued),
        prepare_s=_seconds(profile.prepare),
        forward_s=_seconds(profile.forward),
        sample_s=_seconds(profile.sample),
        round_trip_s=_seconds(profile.round_trip),
        in_flight_s=_seconds(profile.in_flight),
    )


def load_from_proto(load: router_pb.Load) -> Load:
    """Returns the load of a router."""
    return Load(
        waiting_count=load.waiting_count,
        waiting_token_count=load.waiting_token_count,
        waiting_limit=load.waiting_limit,
        running_count=load.running_count,
        expected_wait_s=_seconds(load.expected_wait),
        replicas=tuple(replica_from_proto(replica) for replica in load.replicas),
    )


def adapter_from_proto(adapter: router_pb.Adapter) -> Adapter:
    """Returns an adapter."""
    return Adapter(name=adapter.name, source=adapter.source, rank=adapter.rank)


def health_from_proto(response: health_pb.GetHealthResponse) -> Health:
    """Returns the health of a router and its replicas."""
    return Health(
        router=_component(response.router),
        replicas=tuple(
            ReplicaHealth(
                id=replica.id,
                replica=_component(replica.replica),
                ranks=tuple(_component(rank) for rank in replica.ranks),
            )
            for replica in response.replicas
        ),
    )


def probe_from_proto(response: health_pb.ProbeResponse) -> ProbeResult:
    """Returns the outcome of a probe."""
    return ProbeResult(
        replica_id=response.replica_id, token_id=response.token_id, duration_s=_seconds(response.duration)
    )


def _embedding_limits(limits: router_pb.EmbeddingLimits) -> EmbeddingLimits:
    return EmbeddingLimits(
        dimension_count=limits.dimension_count,
        input_count=limits.input_count,
        token_count=limits.token_count,
    )


def _component(health: health_pb.ComponentHealth) -> ComponentHealth:
    return ComponentHealth(
        state=_state(HealthState, health_pb.HealthState.DESCRIPTOR, health.state),
        checks=tuple(HealthCheck(name=check.name, passed=check.passed, detail=check.detail) for check in health.checks),
    )


def _end(end: generate_pb.CompletionEnd) -> CompletionEnd:
    return CompletionEnd(
        index=end.index,
        reason=_state(FinishReason, generate_pb.FinishReason.DESCRIPTOR, end.reason),
        stop_sequence=end.stop_sequence,
        stop_token_id=end.stop_token_id if end.HasField("stop_token_id") else None,
        generated_token_count=end.generated_token_count,
        seed=end.seed,
        mean_logprob=end.mean_logprob if end.HasField("mean_logprob") else None,
    )


def _usage(usage: generate_pb.Usage) -> Usage:
    return Usage(
        prompt_token_count=usage.prompt_token_count,
        cached_token_count=usage.cached_token_count,
        generated_token_count=usage.generated_token_count,
        drafted_token_count=usage.drafted_token_count,
        accepted_token_count=usage.accepted_token_count,
    )


def _timings(timings: generate_pb.Timings) -> Timings:
    return Timings(
        queued_s=_seconds(timings.queued),
        prefill_s=_seconds(timings.prefill),
        decode_s=_seconds(timings.decode),
    )


def _logprobs(logprobs: Iterable[generate_pb.TokenLogprob]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(
            token_id=token.token_id,
            text=token.text,
            logprob=token.logprob if token.HasField("logprob") else None,
            rank=token.rank,
            top=_logprobs(token.top),
            byte_offset=token.byte_offset,
        )
        for token in logprobs
    )


def _sampling(sampling: sampling_pb.SamplingParams) -> SamplingOptions:
    penalty = sampling.length_penalty
    return SamplingOptions(
        temperature=sampling.temperature if sampling.HasField("temperature") else None,
        top_k=sampling.top_k if sampling.HasField("top_k") else None,
        top_p=sampling.top_p if sampling.HasField("top_p") else None,
        min_p=sampling.min_p if sampling.HasField("min_p") else None,
        typical_p=sampling.typical_p if sampling.HasField("typical_p") else None,
        seed=sampling.seed if sampling.HasField("seed") else None,
        repetition_penalty=sampling.repetition_penalty if sampling.HasField("repetition_penalty") else None,
        frequency_penalty=sampling.frequency_penalty if sampling.HasField("frequency_penalty") else None,
        presence_penalty=sampling.presence_penalty if sampling.HasField("presence_penalty") else None,
        logit_bias=dict(sampling.logit_bias),
        banned_words=tuple(sampling.banned_words),
        length_penalty=LengthPenalty(start_index=penalty.start_index, decay_factor=penalty.decay_factor)
        if sampling.HasField("length_penalty")
        else None,
    )


def _state(states: type[StateT], wire: EnumDescriptor, value: int) -> StateT:
    """Returns the state of the same name, and UNKNOWN for a value of a newer contract."""
    if value not in wire.values_by_number:
        return states["UNKNOWN"]
    prefix = wire.values_by_number[0].name.removesuffix("UNSPECIFIED")
    name = wire.values_by_number[value].name.removeprefix(prefix)
    return states[name if name in states.__members__ else "UNKNOWN"]


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
