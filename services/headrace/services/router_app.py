"""The router put together: pipeline, replicas and the public services on one gRPC server."""

import asyncio
import secrets
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.contract.clock import Clock
from headrace.contract.engine import EngineConnector
from headrace.contract.errors import Draining, StartupError
from headrace.router.adapter_desk import AdapterDesk
from headrace.router.adapter_table import AdapterTable
from headrace.router.admission import Admission, AdmissionLimits
from headrace.router.embedding_pipeline import EmbeddingPipeline
from headrace.router.pipeline import Pipeline, ServedModel
from headrace.router.replica import SchedulingOptions
from headrace.router.replicas import ReplicaSet
from headrace.router.reporting import Report
from headrace.services.address import Address
from headrace.services.channel_options import ServerLimits
from headrace.services.channel_tls import ChannelSecurity
from headrace.services.embedding_servicer import EmbeddingServicer
from headrace.services.gatekeeper import Gatekeeper
from headrace.services.generate_servicer import GenerateServicer
from headrace.services.grpc_server import DrainTimes, GrpcServer
from headrace.services.health_servicer import HealthServicer
from headrace.services.router_servicer import RouterServicer
from headrace.services.server_tls import ServerTls
from headrace.services.stall_watch import StallWatch
from headrace.v1 import (
    embedding_service_pb2,
    embedding_service_pb2_grpc,
    generate_service_pb2,
    generate_service_pb2_grpc,
    health_service_pb2,
    health_service_pb2_grpc,
    router_service_pb2,
    router_service_pb2_grpc,
)

if TYPE_CHECKING:  # an import of OpenTelemetry, which is not installed everywhere
    from headrace.services.telemetry.spans import Tracing

RETRY_WHEN_DRAINING_S = 1.0
"""What callers are told while the server goes away: by then a load balancer knows of another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterOptions:
    """What an operator sets about a router."""

    scheduling: SchedulingOptions
    admission: AdmissionLimits
    server: ServerLimits
    drain: DrainTimes
    replay_timeout_s: float
    """How long requests of a lost replica wait for one to come back."""
    stall_timeout_s: float
    """A reader that takes nothing for so long is cut off."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """PEFT folders by the names that requests have for them, loaded before any replica serves."""
    access_file: Path | None = None
    """Keys and tenants; None asks nobody for a key."""
    shard_security: ChannelSecurity = field(default_factory=ChannelSecurity)
    """How shards are reached."""
    tls: ServerTls | None = None
    """None listens in plain text."""
    allows_remote_plaintext: bool = False
    """Whether to listen beyond loopback without encryption."""


class RouterApp:
    """One router. Create and use it on the event loop that runs it: `start`, then `run`, then `drain`."""

    def __init__(
        self,
        *,
        model: ServedModel,
        options: RouterOptions,
        connector: EngineConnector,
        executor: Executor,
        clock: Clock,
        report: Report,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._options = options
        self.tls = options.tls
        """The certificate of every listener of the process; None listens in plain text."""
        self._clock = clock
        self.replicas = ReplicaSet(
            connector=connector,
            options=options.scheduling,
            vocabulary_size=model.card.vocabulary_size,
            replay_timeout_s=options.replay_timeout_s,
            clock=clock,
            report=report,
            adapters=AdapterTable(options.adapters),
        )
        gatekeeper = None if options.access_file is None else Gatekeeper(options.access_file, clock)
        self._adapters = AdapterDesk(self.replicas, model_name=model.card.name, report=report)
        self.pipeline = Pipeline(
            model=model,
            admission=Admission(options.admission, clock),
            replicas=self.replicas,
            executor=executor,
            clock=clock,
            new_request_id=lambda: secrets.token_hex(16),
            new_seed=lambda: secrets.randbits(64),
        )
        self._embeddings = EmbeddingPipeline(self.pipeline)
        self._stall_watch = StallWatch(options.stall_timeout_s, clock)
        self.server = GrpcServer(
            options.server,
            tls=options.tls,
            gatekeeper=gatekeeper,
            allows_remote_plaintext=options.allows_remote_plaintext,
            clock=clock,
            tracing=tracing,
        )
        if tracing is not None:
            _trace_requests(self.pipeline, tracing)
        if gatekeeper is not None:
            quotas = self.pipeline.desk.quotas
            gatekeeper.follow(lambda access: quotas.set_limits(access.limits, access.default_limits))
        self._add_services()

    async def start(self, addresses: Sequence[Address]) -> tuple[str, ...]:
        """Listens, not serving yet, and returns the addresses with the ports that were chosen.

        Raises:
            StartupError: an address cannot be listened on.
        """
        return await self.server.start(addresses)

    async def run(self, shards: Iterable[tuple[str, ...]]) -> None:
        """Connects the shards and serves until cancelled.

        A bug in one of the loops ends this call with its exception: better a
        restarted router than one that looks well and answers nobody.

        Raises:
            StartupError: an adapter that the options name cannot be loaded.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.replicas.run(shards), name="replicas")
                group.create_task(self._stall_watch.run(), name="stall watch")
                group.create_task(self.pipeline.desk.quotas.run(), name="quotas")
                group.create_task(self._follow_replicas(), name="health")
        except* StartupError as errors:
            raise _first_of(errors) from errors

    async def wait_serving(self) -> None:
        """Waits until a replica takes requests."""
        while not self.replicas.is_serving:
            await self.replicas.wait_changed(self.replicas.version)

    async def drain(self, hurry: asyncio.Event) -> None:
        """Goes away without failing an accepted call; `hurry` cuts all waiting short."""
        await self.server.drain(self._options.drain, refuse=self._refuse, hurry=hurry)

    def _refuse(self) -> None:
        self.pipeline.desk.refuse_new(
            Draining("the server is going away; try another", retry_after_s=RETRY_WHEN_DRAINING_S)
        )

    async def _follow_replicas(self) -> None:
        """Keeps the standard health service true: serving as long as some replica is."""
        while True:
            version = self.replicas.version
            await self.server.set_serving(is_serving=self.replicas.is_serving)
            await self.replicas.wait_changed(version)

    def _add_services(self) -> None:
        generate = GenerateServicer(
            self.pipeline,
            self._stall_watch,
            self._clock,
            frames=self.server.frames,
            departure=self.server.departure,
        )
        embedding = EmbeddingServicer(self._embeddings, self._clock)
        router = RouterServicer(
            self.pipeline,
            self._adapters,
            message_size_bytes=self._options.server.message_size_limit_bytes,
            shard_security=self._options.shard_security,
        )
        health = HealthServicer(self.pipeline, self._clock)
        self.server.add(
            generate_service_pb2.DESCRIPTOR.services_by_name["GenerateService"],
            lambda server: generate_service_pb2_grpc.add_GenerateServiceServicer_to_server(generate, server),
        )
        self.server.add(
            embedding_service_pb2.DESCRIPTOR.services_by_name["EmbeddingService"],
            lambda server: embedding_service_pb2_grpc.add_EmbeddingServiceServicer_to_server(embedding, server),
        )
        self.server.add(
            router_service_pb2.DESCRIPTOR.services_by_name["RouterService"],
            lambda server: router_service_pb2_grpc.add_RouterServiceServicer_to_server(router, server),
        )
        self.server.add(
            health_service_pb2.DESCRIPTOR.services_by_name["HealthService"],
            lambda server: health_service_pb2_grpc.add_HealthServiceServicer_to_server(health, server),
        )


def _trace_requests(pipeline: Pipeline, tracing: "Tracing") -> None:
    from headrace.services.telemetry.request_spans import RequestSpans  # noqa: PLC0415  # see above

    pipeline.desk.meter.tell = RequestSpans(tracing, pipeline.model.card.name).tell


def _first_of(errors: BaseExceptionGroup[StartupError]) -> StartupError:
    first = errors.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first
