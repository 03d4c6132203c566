"""A router and its shards on real gRPC servers in this process, over fake engines."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from headrace.contract.clock import MonotonicClock
from headrace.internal.v1 import shard_service_pb2
from headrace.internal.v1.shard_service_pb2_grpc import add_ShardServiceServicer_to_server
from headrace.router.admission import AdmissionLimits
from headrace.router.chat_template import ChatTemplate
from headrace.router.model_card import load_model_card, load_tokenizer
from headrace.router.pipeline import ServedModel
from headrace.router.replica import SchedulingOptions
from headrace.router.validation import RequestLimits
from headrace.services.address import parse_address
from headrace.services.channel_options import ServerLimits
from headrace.services.channel_tls import ChannelSecurity
from headrace.services.grpc_server import DrainTimes, GrpcServer
from headrace.services.log import report
from headrace.services.router_app import RouterApp, RouterOptions
from headrace.services.server_tls import ServerTls
from headrace.services.shard_connector import ShardConnector
from headrace.services.shard_servicer import ShardServicer
from headrace.shard.engines.fake import FakeEngine, FakeOptions
from headrace.shard.worker import Worker
from headrace.v1.generate_service_pb2_grpc import GenerateServiceStub
from headrace.v1.health_service_pb2_grpc import HealthServiceStub
from headrace.v1.router_service_pb2_grpc import RouterServiceStub


@dataclass
class Deployment:
    """A router that serves, and stubs to call it."""

    app: RouterApp
    address: str
    channel: grpc.aio.Channel

    @property
    def generate(self) -> Any:
        return GenerateServiceStub(self.channel)

    @property
    def router(self) -> Any:
        return RouterServiceStub(self.channel)

    @property
    def health(self) -> Any:
        return HealthServiceStub(self.channel)

    def stats(self, replica: int = 0) -> Any:
        return self.app.replicas.statuses()[replica].stats

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110  # the scheduler is pure: nobody tells when it changed
            await asyncio.sleep(0.001)

    def check_integrity(self) -> None:
        for replica in self.app.replicas.replicas():
            assert replica.scheduler is not None
            replica.scheduler.check_integrity()


@pytest.fixture(scope="session")
def served_model(example_model: Path) -> ServedModel:
    card = load_model_card(example_model, "test-model")
    assert card.chat_template is not None
    return ServedModel(
        card=card,
        tokenizer=load_tokenizer(example_model),
        template=ChatTemplate(card.chat_template, card.special_tokens),
        limits=RequestLimits(context_token_count=4096, prompt_token_count=4000),
    )


@asynccontextmanager
async def run_shard(
    address: str, engine: FakeOptions, tls: ServerTls | None = None, tracing: Any = None
) -> AsyncIterator[str]:
    worker = Worker(FakeEngine(engine))
    servicer = ShardServicer(instance_id="test", tracing=tracing)
    server = GrpcServer(ServerLimits(), tls=tls)
    server.add(
        shard_service_pb2.DESCRIPTOR.services_by_name["ShardService"],
        lambda grpc_server: add_ShardServiceServicer_to_server(servicer, grpc_server),
    )
    (bound,) = await server.start([parse_address(address)])
    servicer.serve(worker)
    try:
        yield bound
    finally:
        await server.stop()
        worker.close()


@pytest.fixture
def deploy(served_model: ServedModel, tmp_path: Path) -> Callable[..., Any]:
    """Returns a context manager that runs a router, its shards and a channel."""

    @asynccontextmanager
    async def run(
        *,
        engine: FakeOptions | None = None,
        shard_count: int = 1,
        step_row_limit: int = 128,
        waiting_request_limit: int = 1000,
        stall_timeout_s: float = 60.0,
        message_size_limit_bytes: int = 4 * 2**20,
        connection_age_limit_s: float | None = None,
        propagation_s: float = 0.0,
        channel_options: tuple[tuple[str, Any], ...] = (),
        credentials: grpc.ChannelCredentials | None = None,
        shard_tls: ServerTls | None = None,
        shard_security: ChannelSecurity | None = None,
        tracing: Any = None,
        shard_tracing: Any = None,
        **router: Any,
    ) -> AsyncIterator[Deployment]:
        options = RouterOptions(
            scheduling=SchedulingOptions(
                step_token_limit=512,
                step_row_limit=step_row_limit,
                prefill_chunk_token_limit=256,
                priority_head_start_s=5.0,
                step_timeout_s=30.0,
            ),
            admission=AdmissionLimits(waiting_request_limit=waiting_request_limit, waiting_token_limit=10_000_000),
            server=ServerLimits(
                message_size_limit_bytes=message_size_limit_bytes, connection_age_limit_s=connection_age_limit_s
            ),
            drain=DrainTimes(propagation_s=propagation_s, timeout_s=20.0),
            replay_timeout_s=10.0,
            stall_timeout_s=stall_timeout_s,
            shard_security=shard_security or ChannelSecurity(),
            **router,
        )
        async with AsyncExitStack() as stack:
            paths = ["127.0.0.1:0" if shard_tls else f"unix:{tmp_path}/s{number}" for number in range(shard_count)]
            running = [run_shard(path, engine or FakeOptions(), shard_tls, shard_tracing) for path in paths]
            shards = [(await stack.enter_async_context(shard),) for shard in running]
            app = RouterApp(
                model=served_model,
                options=options,
                connector=ShardConnector(message_size_limit_bytes=16 * 2**20, security=options.shard_security),
                executor=stack.enter_context(ThreadPoolExecutor(2)),
                clock=MonotonicClock(),
                report=report,
                tracing=tracing,
            )
            (address,) = await app.start([parse_address("127.0.0.1:0")])
            runner = asyncio.ensure_future(app.run(shards))
            stack.push_async_callback(_end, app, runner)
            channel = (
                grpc.aio.secure_channel(address, credentials, options=list(channel_options))
                if credentials
                else grpc.aio.insecure_channel(address, options=list(channel_options))
            )
            await stack.enter_async_context(channel)
            deployment = Deployment(app, address, channel)
            await deployment.until(
                lambda: sum(status.is_connected for status in app.replicas.statuses()) == shard_count
            )
            yield deployment

    return run


async def _end(app: RouterApp, runner: "asyncio.Future[None]") -> None:
    await app.server.stop()
    runner.cancel()
    await asyncio.wait([runner])
    if not runner.cancelled() and (error := runner.exception()):
        raise error
