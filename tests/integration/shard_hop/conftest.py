"""A shard in the test's own process: a real server on a unix socket over the fake engine."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headrace.contract.sampling import RowStopRules, SamplingParams
from headrace.contract.step import AdmittedSequence, StepPlan
from headrace.internal.v1 import shard_service_pb2 as pb
from headrace.internal.v1.shard_service_pb2_grpc import add_ShardServiceServicer_to_server
from headrace.services.address import parse_address
from headrace.services.channel_options import ServerLimits
from headrace.services.grpc_server import GrpcServer
from headrace.services.shard_servicer import ShardServicer
from headrace.shard.engines.fake import FakeEngine, FakeOptions
from headrace.shard.worker import Worker

OPTIONS = FakeOptions(block_count=64, context_token_count=256)


def admission(step_id: int, *, sequence_id: int = 1, prompt: tuple[int, ...] = (40, 41, 42)) -> StepPlan:
    """Returns a plan that admits one sequence and computes its prompt."""
    sequence = AdmittedSequence(
        sequence_id=sequence_id,
        token_ids=prompt,
        prompt_token_count=len(prompt),
        computed_token_count=0,
        block_ids=tuple(range(4)),
        sampling=SamplingParams(temperature=0.0),
        stopping=RowStopRules(token_limit=60),
    )
    return StepPlan(step_id=step_id, admitted=(sequence,), chunk_rows=(0,), chunk_token_counts=(len(prompt),))


class Shard:
    """What a test sees of its shard."""

    def __init__(self, limits: ServerLimits) -> None:
        self.address = ""
        self.plans: list[StepPlan] = []
        self.has_stepped = asyncio.Event()
        self.may_step = threading.Event()
        self.may_step.set()
        self.failure: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self.worker = Worker(FakeEngine(OPTIONS, on_step=self._on_step))
        self.servicer = ShardServicer(instance_id="test")
        self.server = GrpcServer(limits)
        self.server.add(
            pb.DESCRIPTOR.services_by_name["ShardService"],
            lambda grpc_server: add_ShardServiceServicer_to_server(self.servicer, grpc_server),
        )

    def serve(self) -> None:
        self.servicer.serve(self.worker)

    def _on_step(self, plan: StepPlan) -> None:
        self.plans.append(plan)
        self._loop.call_soon_threadsafe(self.has_stepped.set)
        assert self.may_step.wait(30)
        if self.failure is not None:
            raise self.failure


@asynccontextmanager
async def run_shard(listen: str, limits: ServerLimits | None = None) -> AsyncIterator[Shard]:
    """Runs a shard that is still STARTING."""
    shard = Shard(limits or ServerLimits())
    [shard.address] = await shard.server.start([parse_address(listen)])
    try:
        yield shard
    finally:
        shard.may_step.set()
        await shard.server.stop()
        shard.worker.close()


@pytest.fixture(params=["unix", "tcp"])
async def shard(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shard]:
    """A shard that is still STARTING, on a unix socket and on TCP."""
    listen = f"unix:{tmp_path}/shard.sock" if request.param == "unix" else "127.0.0.1:0"
    async with run_shard(listen) as running:
        yield running
