"""Every method beside generation, by both clients: what is asked and how the answer is read."""

import asyncio
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from headrace.client import (
    Adapter,
    AsyncClient,
    Client,
    ComponentHealth,
    Embedding,
    EmbeddingLimits,
    Embeddings,
    FeatureUnsupported,
    Health,
    HealthCheck,
    HealthState,
    LengthPenalty,
    Load,
    Model,
    ModelLimits,
    NotReady,
    ProbeResult,
    Replica,
    ReplicaHealth,
    ReplicaLoad,
    ReplicaState,
    SamplingOptions,
    StepProfile,
    TextSpan,
    Tokenization,
)
from headrace.v1 import embedding_service_pb2 as embedding_pb
from headrace.v1 import generate_service_pb2 as generate_pb
from headrace.v1 import health_service_pb2 as health_pb
from headrace.v1 import router_service_pb2 as router_pb
from headrace.v1 import sampling_pb2 as sampling_pb

# The shapes of conftest's fixtures; test files cannot import from it.
Server = Any
Script = Any
Fail = Any

REPLICA_PB = router_pb.Replica(
    id="r0",
    addresses=["unix:/a", "unix:/b"],
    model="m",
    state=router_pb.REPLICA_STATE_DRAINING,
    detail="asked to",
    load=router_pb.ReplicaLoad(
        waiting_count=1,
        running_count=2,
        leased_block_count=3,
        cached_block_count=4,
        total_block_count=5,
        step_count=6,
        computed_token_count=7,
        generated_token_count=8,
        cached_token_count=9,
        preemption_count=10,
        row_count=11,
        profile=router_pb.StepProfile(
            step_count=1,
            queued=Duration(seconds=2),
            prepare=Duration(seconds=3),
            forward=Duration(seconds=4),
            sample=Duration(seconds=5),
            round_trip=Duration(seconds=6),
            in_flight=Duration(seconds=7, nanos=500_000_000),
        ),
    ),
    restart_count=12,
)
REPLICA = Replica(
    id="r0",
    addresses=("unix:/a", "unix:/b"),
    model="m",
    state=ReplicaState.DRAINING,
    detail="asked to",
    load=ReplicaLoad(
        waiting_count=1,
        running_count=2,
        leased_block_count=3,
        cached_block_count=4,
        total_block_count=5,
        step_count=6,
        computed_token_count=7,
        generated_token_count=8,
        cached_token_count=9,
        preemption_count=10,
        row_count=11,
        profile=StepProfile(
            step_count=1, queued_s=2, prepare_s=3, forward_s=4, sample_s=5, round_trip_s=6, in_flight_s=7.5
        ),
    ),
    restart_count=12,
)
MODEL_PB = router_pb.Model(
    name="m",
    engine="native",
    architecture="LlamaForCausalLM",
    weight_type="float32",
    limits=router_pb.ModelLimits(
        context_token_count=1,
        prompt_token_count=2,
        vocabulary_size=3,
        stop_sequence_count=4,
        stop_sequence_size_bytes=5,
        completion_count=6,
        top_logprob_count=7,
        message_size_bytes=8,
        stop_token_count=9,
    ),
    default_sampling=sampling_pb.SamplingParams(
        temperature=0.0, top_k=0, length_penalty=sampling_pb.LengthPenalty(start_index=1, decay_factor=1.5)
    ),
    default_max_new_token_count=64,
    supported_fields=["sampling.top_p"],
    end_of_sequence_token_ids=[2],
    has_chat_template=True,
    embedding=router_pb.EmbeddingLimits(dimension_count=10, input_count=11, token_count=12),
)
MODEL = Model(
    name="m",
    engine="native",
    architecture="LlamaForCausalLM",
    weight_type="float32",
    limits=ModelLimits(
        context_token_count=1,
        prompt_token_count=2,
        vocabulary_size=3,
        stop_sequence_count=4,
        stop_sequence_size_bytes=5,
        completion_count=6,
        top_logprob_count=7,
        message_size_bytes=8,
        stop_token_count=9,
    ),
    default_sampling=SamplingOptions(
        temperature=0.0, top_k=0, length_penalty=LengthPenalty(start_index=1, decay_factor=1.5)
    ),
    default_max_new_token_count=64,
    supported_fields=("sampling.top_p",),
    end_of_sequence_token_ids=(2,),
    has_chat_template=True,
    embedding=EmbeddingLimits(dimension_count=10, input_count=11, token_count=12),
)
WELL = ComponentHealth(
    state=HealthState.NOT_SERVING, checks=(HealthCheck(name="shard_connected", passed=False, detail="refused"),)
)
WELL_PB = health_pb.ComponentHealth(
    state=health_pb.HEALTH_STATE_NOT_SERVING,
    checks=[health_pb.HealthCheck(name="shard_connected", passed=False, detail="refused")],
)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A call of a client, and what is on the wire."""

    name: str
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] | None = None
    rpc: str
    asked: Message
    answered: Message
    result: Any


OPERATIONS = [
    Operation(
        name="tokenize",
        arguments=("Once",),
        options={"include_offsets": True, "add_special_tokens": False},
        rpc="Tokenize",
        asked=generate_pb.TokenizeRequest(text="Once", include_offsets=True, add_special_tokens=False),
        answered=generate_pb.TokenizeResponse(
            token_ids=[5, 6], text="Once", spans=[generate_pb.TextSpan(start=0, end=2), generate_pb.TextSpan(start=2)]
        ),
        result=Tokenization(token_ids=(5, 6), text="Once", spans=(TextSpan(0, 2), TextSpan(2, 0))),
    ),
    Operation(
        name="tokenize_chat",
        arguments=([{"role": "user", "content": "Hi"}],),
        options={"template": "{{ x }}"},
        rpc="Tokenize",
        asked=generate_pb.TokenizeRequest(
            chat={"messages": [{"role": "user", "content": [{"text": "Hi"}]}], "template": "{{ x }}"}
        ),
        answered=generate_pb.TokenizeResponse(token_ids=[5], text="<user>Hi"),
        result=Tokenization(token_ids=(5,), text="<user>Hi", spans=()),
    ),
    Operation(
        name="embed",
        arguments=(["Once", [5, 6]],),
        options={"pooling": "mean", "normalize": False, "dimension_count": 2, "truncate_token_count": 3, "priority": 0},
        rpc="Embed",
        asked=embedding_pb.EmbedRequest(
            inputs=[{"text": "Once"}, {"token_ids": {"ids": [5, 6]}}],
            pooling=embedding_pb.POOLING_MEAN,
            normalize=False,
            dimension_count=2,
            truncate_token_count=3,
            priority=0,
        ),
        answered=embedding_pb.EmbedResponse(
            request_id="r",
            model="m",
            embeddings=[{"values": [0.5, -1.0], "token_count": 3}, {"values": [0.0, 2.0], "token_count": 2}],
            usage=embedding_pb.EmbeddingUsage(token_count=5, cached_token_count=1),
            queued=Duration(nanos=250_000_000),
            computed=Duration(seconds=2),
        ),
        result=Embeddings(
            request_id="r",
            model="m",
            embeddings=(Embedding(values=(0.5, -1.0), token_count=3), Embedding(values=(0.0, 2.0), token_count=2)),
            token_count=5,
            cached_token_count=1,
            queued_s=0.25,
            computed_s=2.0,
        ),
    ),
    Operation(
        name="detokenize",
        arguments=([5, 6], "m"),
        options={"include_special_tokens": True},
        rpc="Detokenize",
        asked=generate_pb.DetokenizeRequest(token_ids=[5, 6], model="m", include_special_tokens=True),
        answered=generate_pb.DetokenizeResponse(text="Once"),
        result="Once",
    ),
    Operation(
        name="list_models",
        rpc="ListModels",
        asked=router_pb.ListModelsRequest(),
        answered=router_pb.ListModelsResponse(models=[MODEL_PB]),
        result=(MODEL,),
    ),
    Operation(
        name="get_model",
        arguments=("m",),
        rpc="GetModel",
        asked=router_pb.GetModelRequest(model="m"),
        answered=router_pb.GetModelResponse(model=MODEL_PB),
        result=MODEL,
    ),
    Operation(
        name="get_load",
        rpc="GetLoad",
        asked=router_pb.GetLoadRequest(),
        answered=router_pb.GetLoadResponse(
            load=router_pb.Load(
                waiting_count=1,
                waiting_token_count=2,
                waiting_limit=3,
                running_count=4,
                expected_wait=Duration(seconds=1, nanos=500_000_000),
                replicas=[REPLICA_PB],
            )
        ),
        result=Load(
            waiting_count=1,
            waiting_token_count=2,
            waiting_limit=3,
            running_count=4,
            expected_wait_s=1.5,
            replicas=(REPLICA,),
        ),
    ),
    Operation(
        name="list_replicas",
        rpc="ListReplicas",
        asked=router_pb.ListReplicasRequest(),
        answered=router_pb.ListReplicasResponse(replicas=[REPLICA_PB]),
        result=(REPLICA,),
    ),
    Operation(
        name="add_replica",
        arguments=("unix:/a",),
        rpc="AddReplica",
        asked=router_pb.AddReplicaRequest(addresses=["unix:/a"]),
        answered=router_pb.AddReplicaResponse(replica=REPLICA_PB),
        result=REPLICA,
    ),
    Operation(
        name="drain_replica",
        arguments=("r0",),
        rpc="DrainReplica",
        asked=router_pb.DrainReplicaRequest(id="r0"),
        answered=router_pb.DrainReplicaResponse(replica=REPLICA_PB),
        result=REPLICA,
    ),
    Operation(
        name="remove_replica",
        arguments=("r0",),
        rpc="RemoveReplica",
        asked=router_pb.RemoveReplicaRequest(id="r0"),
        answered=router_pb.RemoveReplicaResponse(),
        result=None,
    ),
    Operation(
        name="abort",
        arguments=(["a", "b"],),
        rpc="Abort",
        asked=router_pb.AbortRequest(request_ids=["a", "b"]),
        answered=router_pb.AbortResponse(aborted_request_ids=["b"]),
        result=("b",),
    ),
    Operation(
        name="list_adapters",
        arguments=("m",),
        rpc="ListAdapters",
        asked=router_pb.ListAdaptersRequest(model="m"),
        answered=router_pb.ListAdaptersResponse(adapters=[router_pb.Adapter(name="a", source="/x", rank=8)]),
        result=(Adapter(name="a", source="/x", rank=8),),
    ),
    Operation(
        name="load_adapter",
        arguments=("a", "/x"),
        rpc="LoadAdapter",
        asked=router_pb.LoadAdapterRequest(name="a", source="/x"),
        answered=router_pb.LoadAdapterResponse(adapter=router_pb.Adapter(name="a", source="/x", rank=8)),
        result=Adapter(name="a", source="/x", rank=8),
    ),
    Operation(
        name="unload_adapter",
        arguments=("a",),
        rpc="UnloadAdapter",
        asked=router_pb.UnloadAdapterRequest(name="a"),
        answered=router_pb.UnloadAdapterResponse(),
        result=None,
    ),
    Operation(
        name="flush_prefix_cache",
        rpc="FlushPrefixCache",
        asked=router_pb.FlushPrefixCacheRequest(),
        answered=router_pb.FlushPrefixCacheResponse(flushed_block_count=9),
        result=9,
    ),
    Operation(
        name="get_health",
        rpc="GetHealth",
        asked=health_pb.GetHealthRequest(),
        answered=health_pb.GetHealthResponse(
            router=WELL_PB, replicas=[health_pb.ReplicaHealth(id="r0", replica=WELL_PB, ranks=[WELL_PB])]
        ),
        result=Health(router=WELL, replicas=(ReplicaHealth(id="r0", replica=WELL, ranks=(WELL,)),)),
    ),
    Operation(
        name="probe",
        arguments=("r0",),
        rpc="Probe",
        asked=health_pb.ProbeRequest(replica_id="r0"),
        answered=health_pb.ProbeResponse(replica_id="r0", token_id=5, duration=Duration(nanos=2_000_000)),
        result=ProbeResult(replica_id="r0", token_id=5, duration_s=0.002),
    ),
]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_an_operation_asks_and_answers(server: Server, script: Script, operation: Operation) -> None:
    script.answers[operation.rpc] = operation.answered
    options = {**(operation.options or {}), "metadata": {"trace": "t"}}
    async with AsyncClient(server.target) as client:
        assert await getattr(client, operation.name)(*operation.arguments, **options) == operation.result

    def synchronous() -> object:
        with Client(server.target) as client:
            return getattr(client, operation.name)(*operation.arguments, **options)

    assert await asyncio.to_thread(synchronous) == operation.result
    assert script.requests == [operation.asked, operation.asked]
    assert [headers["trace"] for headers in script.headers] == ["t", "t"]


def test_the_table_covers_every_operation() -> None:
    others = {"generate", "chat", "stream", "chat_stream", "watch_load", "close", "target"}
    public = {name for name in dir(Client) if not name.startswith("_")}
    assert {operation.name for operation in OPERATIONS} == public - others


async def test_states_of_a_newer_server_are_unknown(server: Server, script: Script) -> None:
    newer = router_pb.ListReplicasResponse.FromString(b"\x0a\x02\x20\x63")
    assert newer.replicas[0].state == 99
    script.answers["ListReplicas"] = newer
    async with AsyncClient(server.target) as client:
        (replica,) = await client.list_replicas()
    assert replica.state is ReplicaState.UNKNOWN


async def test_a_model_without_defaults(server: Server, script: Script) -> None:
    script.answers["GetModel"] = router_pb.GetModelResponse(model=router_pb.Model(name="m"))
    async with AsyncClient(server.target) as client:
        model = await client.get_model()
    assert model.default_sampling == SamplingOptions()
    assert model.default_max_new_token_count is None


async def test_what_the_engine_lacks_is_named(server: Server, script: Script, fail: Fail) -> None:
    script.failures.append(
        fail(code=grpc.StatusCode.UNIMPLEMENTED, reason="FEATURE_UNSUPPORTED", message="no adapters")
    )
    async with AsyncClient(server.target) as client:
        with pytest.raises(FeatureUnsupported, match="no adapters"):
            await client.load_adapter("a", "/x")


@pytest.mark.parametrize("operation", ["add_replica", "remove_replica", "load_adapter", "unload_adapter"])
async def test_what_has_an_effect_is_never_sent_twice(
    server: Server, script: Script, fail: Fail, operation: str
) -> None:
    script.failures += 2 * [fail(code=grpc.StatusCode.UNAVAILABLE, reason="NOT_READY", pushback_ms=1)]
    arguments = ("a", "/x") if operation == "load_adapter" else ("a",)
    async with AsyncClient(server.target) as client:
        with pytest.raises(NotReady):
            await getattr(client, operation)(*arguments)
    assert len(script.requests) == 1
