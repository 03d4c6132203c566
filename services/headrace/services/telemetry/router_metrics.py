"""All that a router tells of itself."""

from collections.abc import Iterator
from typing import Final

from headrace.router.pipeline import Pipeline
from headrace.services.grpc_server import GrpcServer
from headrace.services.telemetry.adapter_metrics import ADAPTER_METRICS, read_adapters
from headrace.services.telemetry.metric import Reading
from headrace.services.telemetry.process_metrics import CALL_METRICS, read_calls
from headrace.services.telemetry.replica_metrics import REPLICA_METRICS, read_replicas
from headrace.services.telemetry.request_metrics import REQUEST_METRICS, read_requests

ROUTER_METRICS: Final = (*REQUEST_METRICS, *REPLICA_METRICS, *ADAPTER_METRICS, *CALL_METRICS)


def read_router(pipeline: Pipeline, server: GrpcServer) -> Iterator[Reading]:
    """Yields what `ROUTER_METRICS` are now."""
    yield from read_requests(pipeline)
    yield from read_replicas(pipeline.replicas, pipeline.model.card.name)
    yield from read_adapters(pipeline.replicas.adapters.stats(), pipeline.model.card.name)
    yield from read_calls(server.call_meter)
