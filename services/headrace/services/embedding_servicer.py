"""EmbeddingService over the router's pipeline for vectors."""

import grpc.aio

from headrace.contract.clock import Clock
from headrace.router.embedding_pipeline import EmbeddingPipeline
from headrace.services.call_frame import name_call
from headrace.services.convert_embedding import embedding_request_from_proto, embeddings_to_proto
from headrace.services.in_flight import current_call
from headrace.v1 import embedding_service_pb2 as pb
from headrace.v1 import embedding_service_pb2_grpc


class EmbeddingServicer(embedding_service_pb2_grpc.EmbeddingServiceServicer):
    """Converts; every decision is the pipeline's."""

    def __init__(self, pipeline: EmbeddingPipeline, clock: Clock) -> None:
        self._pipeline = pipeline
        self._clock = clock

    async def Embed(  # noqa: N802
        self, request: pb.EmbedRequest, context: grpc.aio.ServicerContext[pb.EmbedRequest, pb.EmbedResponse]
    ) -> pb.EmbedResponse:
        """Returns a vector for each input."""
        name_call(request.request_id)
        remaining_s = context.time_remaining()
        deadline_s = None if remaining_s is None else self._clock.now() + remaining_s
        call = current_call()
        asked = embedding_request_from_proto(
            request, deadline_s=deadline_s, tenant=call.caller.tenant, trace_parent=call.trace_parent
        )
        return embeddings_to_proto(await self._pipeline.embed(asked))
