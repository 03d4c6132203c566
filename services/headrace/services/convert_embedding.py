"""Converts requests for vectors, and their answers, from and to `headrace.v1`."""

import sys
from array import array

from headrace.contract.embedding import EmbeddingInput, EmbeddingRequest, Embeddings
from headrace.contract.errors import InvalidRequest
from headrace.contract.generation import TextPrompt, TokenPrompt
from headrace.contract.pooling import Pooling
from headrace.services.duration import duration_to_proto
from headrace.v1 import embedding_service_pb2 as pb

_POOLINGS = {
    pb.POOLING_UNSPECIFIED: None,
    pb.POOLING_MEAN: Pooling.MEAN,
    pb.POOLING_LAST: Pooling.LAST,
}


def embedding_request_from_proto(
    request: pb.EmbedRequest, *, deadline_s: float | None, tenant: str = "", trace_parent: str = ""
) -> EmbeddingRequest:
    """Returns what a client asked for: presence is kept, ranges are not checked.

    Raises:
        InvalidRequest: the pooling has a value that this version does not know.
    """
    has = request.HasField
    if request.pooling not in _POOLINGS:
        raise InvalidRequest.of("pooling", f"has the value {request.pooling}, which this server does not know")
    return EmbeddingRequest(
        inputs=tuple(_input_from_proto(entry) for entry in request.inputs),
        pooling=_POOLINGS[request.pooling],
        model=request.model,
        request_id=request.request_id,
        normalize=request.normalize if has("normalize") else None,
        dimension_count=request.dimension_count if has("dimension_count") else None,
        truncate_token_count=request.truncate_token_count if has("truncate_token_count") else None,
        add_special_tokens=request.add_special_tokens if has("add_special_tokens") else None,
        adapter=request.adapter,
        priority=request.priority if has("priority") else None,
        cache_salt=request.cache_salt,
        tenant=tenant,
        deadline_s=deadline_s,
        trace_parent=trace_parent,
    )


def embeddings_to_proto(answer: Embeddings) -> pb.EmbedResponse:
    """Returns the message of an answer."""
    return pb.EmbedResponse(
        request_id=answer.request_id,
        model=answer.model,
        embeddings=[
            pb.Embedding(values=floats_of(embedding.values), token_count=embedding.token_count)
            for embedding in answer.embeddings
        ],
        usage=pb.EmbeddingUsage(
            token_count=sum(embedding.token_count for embedding in answer.embeddings),
            cached_token_count=sum(embedding.cached_token_count for embedding in answer.embeddings),
        ),
        queued=duration_to_proto(answer.queued_s),
        computed=duration_to_proto(answer.computed_s),
    )


def floats_of(values: bytes) -> "array[float]":
    """Returns the numbers of a vector that came as little-endian float32."""
    numbers = array("f", values)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _input_from_proto(message: pb.EmbeddingInput) -> EmbeddingInput | None:
    match message.WhichOneof("input"):
        case "text":
            return TextPrompt(message.text)
        case "token_ids":
            return TokenPrompt(tuple(message.token_ids.ids))
        case _:
            return None
