"""Every RPC of `headrace.v1` as a value: where it goes, what it sends and how its answer is read.

The two clients differ only in how they wait, so all the rest is here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from headrace.client import convert, requests
from headrace.client.chat import MessageLike
from headrace.client.operations import Adapter, Health, Load, Model, ProbeResult, Replica
from headrace.client.options import ChatOptions, EmbedOptions, GenerateOptions, TokenizeChatOptions, TokenizeOptions
from headrace.client.requests import PoolingLike, Prompt
from headrace.client.results import Embeddings, Generation, Tokenization
from headrace.v1 import embedding_service_pb2 as embedding_pb
from headrace.v1 import generate_service_pb2 as generate_pb
from headrace.v1 import health_service_pb2 as health_pb
from headrace.v1 import router_service_pb2 as router_pb

ResponseT = TypeVar("ResponseT", bound=Message)
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Call(Generic[ResponseT, ResultT]):
    """One call of one method."""

    path: str
    """The method's path in HTTP/2."""
    request: Message
    response_type: type[ResponseT]
    read: Callable[[ResponseT], ResultT]
    """Turns a response, or each one of a stream, into the client's own type."""
    request_id: str = ""
    """Chosen by the caller; empty leaves it to the server."""


_GENERATE = "/headrace.v1.GenerateService/"
GENERATE_MULTIPLEXED = f"{_GENERATE}GenerateMultiplexed"
"""What the streams of an `AsyncChannel` that multiplexes share."""
_EMBEDDING = "/headrace.v1.EmbeddingService/"
_ROUTER = "/headrace.v1.RouterService/"
_HEALTH = "/headrace.v1.HealthService/"

StreamCall = Call[generate_pb.GenerateStreamResponse, generate_pb.GenerateStreamResponse]
"""A generation stream, whose responses only make sense together."""


def generate(prompt: Prompt, options: GenerateOptions) -> Call[generate_pb.GenerateResponse, Generation]:
    """Generates from a text or token ids."""
    return _generate(requests.generate_request(prompt, options))


def chat(messages: Sequence[MessageLike], options: ChatOptions) -> Call[generate_pb.GenerateResponse, Generation]:
    """Generates from a conversation."""
    return _generate(requests.chat_request(messages, options))


def stream(prompt: Prompt, options: GenerateOptions) -> StreamCall:
    """Streams from a text or token ids."""
    return _stream(requests.generate_request(prompt, options))


def chat_stream(messages: Sequence[MessageLike], options: ChatOptions) -> StreamCall:
    """Streams from a conversation."""
    return _stream(requests.chat_request(messages, options))


def embed(
    inputs: str | Sequence[Prompt], pooling: PoolingLike, options: EmbedOptions
) -> Call[embedding_pb.EmbedResponse, Embeddings]:
    """Turns texts or token ids into vectors."""
    request = requests.embed_request(inputs, pooling, options)
    return Call(
        f"{_EMBEDDING}Embed", request, embedding_pb.EmbedResponse, convert.embeddings_from_proto, request.request_id
    )


def tokenize(text: str, options: TokenizeOptions) -> Call[generate_pb.TokenizeResponse, Tokenization]:
    """Tokenizes a text."""
    return _tokenize(requests.tokenize_request(text, options))


def tokenize_chat(
    messages: Sequence[MessageLike], options: TokenizeChatOptions
) -> Call[generate_pb.TokenizeResponse, Tokenization]:
    """Renders and tokenizes a conversation."""
    return _tokenize(requests.tokenize_chat_request(messages, options))


def detokenize(
    token_ids: Sequence[int], model: str, *, include_special_tokens: bool | None
) -> Call[generate_pb.DetokenizeResponse, str]:
    """Turns token ids into text."""
    return Call(
        f"{_GENERATE}Detokenize",
        requests.detokenize_request(token_ids, model, include_special_tokens=include_special_tokens),
        generate_pb.DetokenizeResponse,
        lambda response: response.text,
    )


def list_models() -> Call[router_pb.ListModelsResponse, tuple[Model, ...]]:
    """Lists the served models."""
    return Call(
        f"{_ROUTER}ListModels",
        router_pb.ListModelsRequest(),
        router_pb.ListModelsResponse,
        lambda response: tuple(convert.model_from_proto(model) for model in response.models),
    )


def get_model(model: str) -> Call[router_pb.GetModelResponse, Model]:
    """Describes one model."""
    return Call(
        f"{_ROUTER}GetModel",
        router_pb.GetModelRequest(model=model),
        router_pb.GetModelResponse,
        lambda response: convert.model_from_proto(response.model),
    )


def get_load() -> Call[router_pb.GetLoadResponse, Load]:
    """Reports the load."""
    return Call(
        f"{_ROUTER}GetLoad",
        router_pb.GetLoadRequest(),
        router_pb.GetLoadResponse,
        lambda response: convert.load_from_proto(response.load),
    )


def watch_load(interval_s: float | None) -> Call[router_pb.WatchLoadResponse, Load]:
    """Reports the load at an interval."""
    interval = None if interval_s is None else requests.duration("interval", interval_s)
    return Call(
        f"{_ROUTER}WatchLoad",
        router_pb.WatchLoadRequest(interval=interval),
        router_pb.WatchLoadResponse,
        lambda response: convert.load_from_proto(response.load),
    )


def list_replicas() -> Call[router_pb.ListReplicasResponse, tuple[Replica, ...]]:
    """Lists the replicas."""
    return Call(
        f"{_ROUTER}ListReplicas",
        router_pb.ListReplicasRequest(),
        router_pb.ListReplicasResponse,
        lambda response: tuple(convert.replica_from_proto(replica) for replica in response.replicas),
    )


def add_replica(addresses: str | Sequence[str]) -> Call[router_pb.AddReplicaResponse, Replica]:
    """Connects a replica."""
    return Call(
        f"{_ROUTER}AddReplica",
        router_pb.AddReplicaRequest(addresses=_texts(addresses)),
        router_pb.AddReplicaResponse,
        lambda response: convert.replica_from_proto(response.replica),
    )


def drain_replica(replica_id: str) -> Call[router_pb.DrainReplicaResponse, Replica]:
    """Drains a replica."""
    return Call(
        f"{_ROUTER}DrainReplica",
        router_pb.DrainReplicaRequest(id=replica_id),
        router_pb.DrainReplicaResponse,
        lambda response: convert.replica_from_proto(response.replica),
    )


def remove_replica(replica_id: str) -> Call[router_pb.RemoveReplicaResponse, None]:
    """Disconnects a replica."""
    return Call(
        f"{_ROUTER}RemoveReplica",
        router_pb.RemoveReplicaRequest(id=replica_id),
        router_pb.RemoveReplicaResponse,
        lambda _: None,
    )


def abort(request_ids: str | Sequence[str]) -> Call[router_pb.AbortResponse, tuple[str, ...]]:
    """Ends requests."""
    return Call(
        f"{_ROUTER}Abort",
        router_pb.AbortRequest(request_ids=_texts(request_ids)),
        router_pb.AbortResponse,
        lambda response: tuple(response.aborted_request_ids),
    )


def list_adapters(model: str) -> Call[router_pb.ListAdaptersResponse, tuple[Adapter, ...]]:
    """Lists the adapters."""
    return Call(
        f"{_ROUTER}ListAdapters",
        router_pb.ListAdaptersRequest(model=model),
        router_pb.ListAdaptersResponse,
        lambda response: tuple(convert.adapter_from_proto(adapter) for adapter in response.adapters),
    )


def load_adapter(name: str, source: str, model: str) -> Call[router_pb.LoadAdapterResponse, Adapter]:
    """Loads an adapter."""
    return Call(
        f"{_ROUTER}LoadAdapter",
        router_pb.LoadAdapterRequest(name=name, source=source, model=model),
        router_pb.LoadAdapterResponse,
        lambda response: convert.adapter_from_proto(response.adapter),
    )


def unload_adapter(name: str, model: str) -> Call[router_pb.UnloadAdapterResponse, None]:
    """Unloads an adapter."""
    return Call(
        f"{_ROUTER}UnloadAdapter",
        router_pb.UnloadAdapterRequest(name=name, model=model),
        router_pb.UnloadAdapterResponse,
        lambda _: None,
    )


def flush_prefix_cache(model: str) -> Call[router_pb.FlushPrefixCacheResponse, int]:
    """Forgets cached prefixes."""
    return Call(
        f"{_ROUTER}FlushPrefixCache",
        router_pb.FlushPrefixCacheRequest(model=model),
        router_pb.FlushPrefixCacheResponse,
        lambda response: response.flushed_block_count,
    )


def get_health() -> Call[health_pb.GetHealthResponse, Health]:
    """Reports the health."""
    return Call(
        f"{_HEALTH}GetHealth",
        health_pb.GetHealthRequest(),
        health_pb.GetHealthResponse,
        convert.health_from_proto,
    )


def probe(replica_id: str) -> Call[health_pb.ProbeResponse, ProbeResult]:
    """Generates one token."""
    return Call(
        f"{_HEALTH}Probe",
        health_pb.ProbeRequest(replica_id=replica_id),
        health_pb.ProbeResponse,
        convert.probe_from_proto,
    )


def serialize(message: Message) -> bytes:
    """Returns a message as gRPC sends it. Not `Message.SerializeToString`: every message class brings its own."""
    return message.SerializeToString()


def _generate(request: generate_pb.GenerateRequest) -> Call[generate_pb.GenerateResponse, Generation]:
    return Call(
        f"{_GENERATE}Generate",
        request,
        generate_pb.GenerateResponse,
        convert.generation_from_proto,
        request.request_id,
    )


def _stream(request: generate_pb.GenerateRequest) -> StreamCall:
    return Call(
        f"{_GENERATE}GenerateStream",
        request,
        generate_pb.GenerateStreamResponse,
        lambda response: response,
        request.request_id,
    )


def _tokenize(request: generate_pb.TokenizeRequest) -> Call[generate_pb.TokenizeResponse, Tokenization]:
    return Call(f"{_GENERATE}Tokenize", request, generate_pb.TokenizeResponse, convert.tokenization_from_proto)


def _texts(value: str | Sequence[str]) -> Sequence[str]:
    return (value,) if isinstance(value, str) else value
