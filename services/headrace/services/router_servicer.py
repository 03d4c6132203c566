"""RouterService: what is served, how loaded it is, and the levers of an operator."""

import asyncio
from collections.abc import AsyncIterator

import grpc.aio

from headrace.contract.errors import InvalidRequest, StartupError
from headrace.router.adapter_desk import AdapterDesk
from headrace.router.pipeline import Pipeline
from headrace.router.replica import ReplicaStatus
from headrace.services.address import parse_address
from headrace.services.caller import Role
from headrace.services.channel_tls import ChannelSecurity
from headrace.services.convert_router import adapter_to_proto, model_to_proto, replica_to_proto
from headrace.services.duration import duration_to_proto
from headrace.services.in_flight import current_call
from headrace.v1 import router_service_pb2 as pb
from headrace.v1 import router_service_pb2_grpc

SHORTEST_INTERVAL_S = 0.05
LONGEST_INTERVAL_S = 60.0
DEFAULT_INTERVAL_S = 1.0


class RouterServicer(router_service_pb2_grpc.RouterServiceServicer):
    """Reads and operates one pipeline, its replicas and its adapters."""

    def __init__(
        self,
        pipeline: Pipeline,
        adapters: AdapterDesk,
        *,
        message_size_bytes: int,
        shard_security: ChannelSecurity,
    ) -> None:
        self._pipeline = pipeline
        self._adapters = adapters
        self._shard_security = shard_security
        self._message_size_bytes = message_size_bytes

    async def ListModels(  # noqa: N802
        self, _request: pb.ListModelsRequest, _context: grpc.aio.ServicerContext[object, object]
    ) -> pb.ListModelsResponse:
        """Lists the served models."""
        return pb.ListModelsResponse(models=[self._model()])

    async def GetModel(  # noqa: N802
        self, request: pb.GetModelRequest, _context: grpc.aio.ServicerContext[object, object]
    ) -> pb.GetModelResponse:
        """Returns the model's limits, defaults and capabilities."""
        self._pipeline.check_model(request.model)
        return pb.GetModelResponse(model=self._model())

    async def ListReplicas(  # noqa: N802
        self, _request: pb.ListReplicasRequest, _context: grpc.aio.ServicerContext[object, object]
    ) -> pb.ListReplicasResponse:
        """Lists the replicas and their state."""
        return pb.ListReplicasResponse(replicas=self._replicas())

    async def AddReplica(  # noqa: N802
        self, request: pb.AddReplicaRequest, _context: grpc.aio.ServicerContext[object, object]
    ) -> pb.AddReplicaResponse:
        """Connects a model server."""
        if not request.addresses:
            raise InvalidRequest.of("addresses", "must name the address of every rank, rank 0 first")
        for index, address in enumerate(request.addresses):
            try:
                self._shard_security.check([parse_address(address)])
            except (ValueError, StartupError) as error:
                raise InvalidRequest.of(f"addresses[{index}]", str(error)) from error
        return pb.AddReplicaResponse(replica=self._replica(self._pipeline.replicas.add(tuple(request.addresses))))

    async def DrainReplica(  # noqa: N802
        self, request: pb.DrainReplicaRequest, _context: grpc.aio.ServicerContext[object, object]
    ) -> pb.DrainReplicaResponse:
        """Gives a replica no new requests."""
        return pb.DrainReplicaResponse(replica=self._replica(self._pipeline.replicas.drain(request.id)))

    async def RemoveReplica(  # noqa: N802
        self, request: pb.RemoveReplicaRequest, _context: grpc.aio.ServicerContext[object, object]
    ) -> pb.RemoveReplicaResponse:
        """Disconnects a replica; its requests go on elsewhere."""
        await self._pipeline.replicas.remove(request.id)
        return pb.RemoveReplicaResponse()

    async def GetLoad(  # noqa: N802
        self, _request: pb.GetLoadRequest, _context: grpc.aio.ServicerContext[object, object]
    ) -> pb.GetLoadResponse:
        """Returns the current load."""
        return pb.GetLoadResponse(load=self._load())

    async def WatchLoad(  # noqa: N802
        self, request: pb.WatchLoadRequest, _context: grpc.aio.ServicerContext[object, object]
    ) -> AsyncIterator[pb.WatchLoadResponse]:
        """Streams the load until the caller goes away; the server ends it when it stops."""
        interval_s = DEFAULT_INTERVAL_S
        if request.HasField("interval"):
            interval_s = request.interval.ToNanoseconds() / 1e9
        if not SHORTEST_INTERVAL_S <= interval_s <= LONGEST_INTERVAL_S:
            raise InvalidRequest.of(
                "interval", f"must be in [{SHORTEST_INTERVAL_S:g} s, {LONGEST_INTERVAL_S:g} s], is {interval_s:g} s"
            )
        while True:
            yield pb.WatchLoadResponse(load=self._load())
            await asyncio.sleep(interval_s)

    async def Abort(  # noqa: N802
        self, request: pb.AbortRequest, _context: grpc.aio.ServicerContext[object, object]
    ) -> pb.AbortResponse:
        """Ends requests early; ids that are not running are ignored, and so are those of another tenant's requests."""
        caller = current_call().caller
        tenant = None if Role.OPERATE in caller.roles else caller.tenant
        return pb.AbortResponse(aborted_request_ids=self._pipeline.desk.abort(request.request_ids, tenant=tenant))

    async def ListAdapters(  # noqa: N802
        self, request: pb.ListAdaptersRequest, _context: grpc.aio.ServicerContext[object, object]
    ) -> pb.ListAdaptersResponse:
        """Lists the adapters that requests may name."""
        self._pipeline.check_model(request.model)
        return pb.ListAdaptersResponse(adapters=map(adapter_to_proto, self._pipeline.adapters.adapters()))

    async def LoadAdapter(  # noqa: N802
        self, request: pb.LoadAdapterRequest, _context: grpc.aio.ServicerContext[object, object]
    ) -> pb.LoadAdapterResponse:
        """Loads an adapter on every replica."""
        self._pipeline.check_model(request.model)
        return pb.LoadAdapterResponse(adapter=adapter_to_proto(await self._adapters.load(request.name, request.source)))

    async def UnloadAdapter(  # noqa: N802
        self, request: pb.UnloadAdapterRequest, _context: grpc.aio.ServicerContext[object, object]
    ) -> pb.UnloadAdapterResponse:
        """Takes an adapter from new requests; those that have it go on."""
        self._pipeline.check_model(request.model)
        self._adapters.unload(request.name)
        return pb.UnloadAdapterResponse()

    async def FlushPrefixCache(  # noqa: N802
        self, request: pb.FlushPrefixCacheRequest, _context: grpc.aio.ServicerContext[object, object]
    ) -> pb.FlushPrefixCacheResponse:
        """Forgets every cached prefix that no running request uses."""
        self._pipeline.check_model(request.model)
        return pb.FlushPrefixCacheResponse(flushed_block_count=self._pipeline.replicas.flush_prefix_cache())

    def _model(self) -> pb.Model:
        return model_to_proto(
            self._pipeline.model, self._pipeline.capabilities(), message_size_bytes=self._message_size_bytes
        )

    def _replicas(self) -> list[pb.Replica]:
        return [self._replica(status) for status in self._pipeline.replicas.statuses()]

    def _replica(self, status: ReplicaStatus) -> pb.Replica:
        return replica_to_proto(status, self._pipeline.model.card.name)

    def _load(self) -> pb.Load:
        admission = self._pipeline.admission
        statuses = self._pipeline.replicas.statuses()
        return pb.Load(
            waiting_count=admission.waiting_count,
            waiting_token_count=admission.waiting_token_count,
            waiting_limit=admission.limits.waiting_request_limit,
            running_count=sum(status.stats.running_count for status in statuses),
            expected_wait=duration_to_proto(admission.expected_wait_s),
            replicas=[self._replica(status) for status in statuses],
        )
