"""Converts what the router knows of its models and replicas to `headrace.v1`."""

from headrace.contract.engine import EngineDescription
from headrace.contract.sampling import SamplingOptions
from headrace.router.adapter_table import Adapter
from headrace.router.field_checks import RequestLimits
from headrace.router.pipeline import Capabilities, ServedModel
from headrace.router.replica import ReplicaState, ReplicaStatus
from headrace.router.stats import SchedulerStats
from headrace.router.step_profile import StepProfile
from headrace.services.convert_request import sampling_to_proto
from headrace.services.duration import duration_to_proto
from headrace.v1 import router_service_pb2 as pb

_STATES = {
    ReplicaState.STARTING: pb.REPLICA_STATE_STARTING,
    ReplicaState.SERVING: pb.REPLICA_STATE_SERVING,
    ReplicaState.DRAINING: pb.REPLICA_STATE_DRAINING,
    ReplicaState.LOST: pb.REPLICA_STATE_LOST,
}


def model_to_proto(model: ServedModel, capabilities: Capabilities, *, message_size_bytes: int) -> pb.Model:
    """Returns a model as GetModel shows it.

    Args:
        model: What the router knows of it.
        capabilities: What a request may ask for, the engine's limits included.
        message_size_bytes: Largest message that the server receives.
    """
    card, description, limits = model.card, capabilities.description, capabilities.limits
    defaults = capabilities.validator.default_sampling
    return pb.Model(
        name=card.name,
        engine=description.engine,
        architecture=description.architecture,
        weight_type=description.weight_type,
        limits=pb.ModelLimits(
            context_token_count=limits.context_token_count,
            prompt_token_count=limits.prompt_token_count,
            vocabulary_size=card.vocabulary_size,
            stop_sequence_count=limits.stop_sequence_count,
            stop_sequence_size_bytes=limits.stop_sequence_size_bytes,
            stop_token_count=limits.stop_token_count,
            completion_count=limits.completion_count,
            top_logprob_count=limits.top_logprob_count,
            message_size_bytes=message_size_bytes,
        ),
        default_sampling=sampling_to_proto(
            SamplingOptions(
                temperature=defaults.temperature,
                top_k=defaults.top_k,
                top_p=defaults.top_p,
                min_p=defaults.min_p,
                typical_p=defaults.typical_p,
                repetition_penalty=defaults.repetition_penalty,
                frequency_penalty=defaults.frequency_penalty,
                presence_penalty=defaults.presence_penalty,
            )
        ),
        default_max_new_token_count=card.default_max_new_token_count,
        supported_fields=sorted(capabilities.validator.supported_fields),
        end_of_sequence_token_ids=card.end_of_sequence_token_ids,
        has_chat_template=model.template is not None,
        tool_format=card.tool_format or "",
        reasoning_format=card.reasoning_format or "",
        embedding=_embedding_to_proto(description, limits) if description.hidden_size else None,
    )


def replica_to_proto(status: ReplicaStatus, model: str) -> pb.Replica:
    """Returns a replica as ListReplicas shows it."""
    return pb.Replica(
        id=status.id,
        addresses=status.addresses,
        model=model if status.is_known else "",
        state=_STATES[status.state],
        detail=status.detail,
        load=_load_to_proto(status.stats, status.profile),
        restart_count=status.restart_count,
    )


def adapter_to_proto(adapter: Adapter) -> pb.Adapter:
    """Returns an adapter as ListAdapters shows it."""
    return pb.Adapter(name=adapter.name, source=adapter.source, rank=adapter.rank)


def _embedding_to_proto(description: EngineDescription, limits: RequestLimits) -> pb.EmbeddingLimits:
    return pb.EmbeddingLimits(
        dimension_count=description.hidden_size,
        input_count=limits.embedding_input_count,
        token_count=limits.prompt_token_count,
    )


def _load_to_proto(stats: SchedulerStats, profile: StepProfile) -> pb.ReplicaLoad:
    return pb.ReplicaLoad(
        waiting_count=stats.waiting_count,
        running_count=stats.running_count,
        leased_block_count=stats.leased_block_count,
        cached_block_count=stats.cached_block_count,
        total_block_count=stats.total_block_count,
        step_count=stats.step_count,
        computed_token_count=stats.computed_token_count,
        generated_token_count=stats.generated_token_count,
        cached_token_count=stats.cached_token_count,
        preemption_count=stats.preemption_count,
        row_count=stats.row_count,
        drafted_token_count=stats.drafted_token_count,
        accepted_token_count=stats.accepted_token_count,
        profile=pb.StepProfile(
            step_count=profile.step_count,
            queued=duration_to_proto(profile.queued_s),
            prepare=duration_to_proto(profile.prepare_s),
            forward=duration_to_proto(profile.forward_s),
            sample=duration_to_proto(profile.sample_s),
            round_trip=duration_to_proto(profile.round_trip_s),
            in_flight=duration_to_proto(profile.in_flight_s),
        ),
    )
