"""HealthService: the reasons behind the one value that grpc.health.v1 gives."""

import time

import grpc.aio

from headrace.contract.clock import Clock
from headrace.router.pipeline import Pipeline
from headrace.router.replica import ReplicaState, ReplicaStatus
from headrace.services.duration import duration_to_proto
from headrace.v1 import health_service_pb2 as pb
from headrace.v1 import health_service_pb2_grpc

DEFAULT_PROBE_TIMEOUT_S = 30.0

_STATES = {
    ReplicaState.STARTING: pb.HEALTH_STATE_STARTING,
    ReplicaState.SERVING: pb.HEALTH_STATE_SERVING,
    ReplicaState.DRAINING: pb.HEALTH_STATE_DRAINING,
    ReplicaState.LOST: pb.HEALTH_STATE_NOT_SERVING,
}


class HealthServicer(health_service_pb2_grpc.HealthServiceServicer):
    """Explains the state of the router, its replicas and their ranks."""

    def __init__(self, pipeline: Pipeline, clock: Clock) -> None:
        self._pipeline = pipeline
        self._clock = clock

    async def GetHealth(  # noqa: N802
        self, _request: pb.GetHealthRequest, _context: grpc.aio.ServicerContext[object, object]
    ) -> pb.GetHealthResponse:
        """Returns all states with their reasons."""
        statuses = self._pipeline.replicas.statuses()
        return pb.GetHealthResponse(
            router=self._router_health(statuses), replicas=[_replica_health(status) for status in statuses]
        )

    async def Probe(  # noqa: N802
        self, request: pb.ProbeRequest, context: grpc.aio.ServicerContext[pb.ProbeRequest, pb.ProbeResponse]
    ) -> pb.ProbeResponse:
        """Generates one token through a replica."""
        replica_id = request.replica_id or self._pipeline.replicas.next_probed()
        remaining_s = context.time_remaining()
        timeout_s = DEFAULT_PROBE_TIMEOUT_S if remaining_s is None else remaining_s
        started_s = time.perf_counter()
        token_id = await self._pipeline.probe(replica_id, self._clock.now() + timeout_s)
        return pb.ProbeResponse(
            replica_id=replica_id,
            token_id=token_id,
            duration=duration_to_proto(time.perf_counter() - started_s),
        )

    def _router_health(self, statuses: list[ReplicaStatus]) -> pb.ComponentHealth:
        serving_count = sum(status.state is ReplicaState.SERVING for status in statuses)
        admission = self._pipeline.admission
        limit = admission.limits.waiting_request_limit
        checks = [
            pb.HealthCheck(
                name="accepting_requests",
                passed=not self._pipeline.desk.is_refusing,
                detail="draining" if self._pipeline.desk.is_refusing else "accepting",
            ),
            pb.HealthCheck(
                name="replica_serving",
                passed=serving_count > 0,
                detail=f"{serving_count} of {len(statuses)} replicas serve",
            ),
            pb.HealthCheck(
                name="queue_has_room",
                passed=admission.waiting_count < limit,
                detail=f"{admission.waiting_count} of {limit} places taken",
            ),
        ]
        return pb.ComponentHealth(state=self._router_state(statuses, serving_count, checks), checks=checks)

    def _router_state(
        self, statuses: list[ReplicaStatus], serving_count: int, checks: list[pb.HealthCheck]
    ) -> "pb.HealthState.ValueType":
        if self._pipeline.desk.is_refusing:
            return pb.HEALTH_STATE_DRAINING
        if serving_count == 0:
            is_starting = any(status.state is ReplicaState.STARTING for status in statuses)
            return pb.HEALTH_STATE_STARTING if is_starting else pb.HEALTH_STATE_NOT_SERVING
        is_well = serving_count == len(statuses) and all(check.passed for check in checks)
        return pb.HEALTH_STATE_SERVING if is_well else pb.HEALTH_STATE_DEGRADED


def _replica_health(status: ReplicaStatus) -> pb.ReplicaHealth:
    check = pb.HealthCheck(name="shard_connected", passed=status.is_connected, detail=status.detail)
    return pb.ReplicaHealth(
        id=status.id,
        replica=pb.ComponentHealth(state=_STATES[status.state], checks=[check]),
        ranks=[
            pb.ComponentHealth(
                state=pb.HEALTH_STATE_SERVING if status.is_connected else pb.HEALTH_STATE_NOT_SERVING,
                checks=[pb.HealthCheck(name="shard_connected", passed=status.is_connected, detail=address)],
            )
            for address in status.addresses
        ],
    )
