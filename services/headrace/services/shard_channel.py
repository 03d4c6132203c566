"""A shard as an engine: sends plans over the Step stream and matches the answers to them."""

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

import grpc

from headrace.client.errors import error_from_rpc
from headrace.contract.adapter import AdapterOrder, LoadedAdapter
from headrace.contract.engine import EngineDescription
from headrace.contract.errors import DeadlineExceeded, HeadraceError, PlanRejected, RequestError, ShardLost
from headrace.contract.step import StepPlan, StepResult
from headrace.internal.v1 import shard_service_pb2 as pb
from headrace.services.convert_step import plan_to_proto, result_from_proto
from headrace.services.write_queue import WriteQueue

if TYPE_CHECKING:  # the stub exists for type checkers alone
    from headrace.internal.v1.shard_service_pb2_grpc import ShardServiceAsyncStub

ADAPTER_TIMEOUT_S = 60.0
"""A shard reads an adapter from a disk that may be slow, and its running step may be long."""

StepCall: TypeAlias = "grpc.aio.StreamStreamCall[pb.StepRequest, pb.StepResponse]"


class ShardChannel:
    """A `StepEngine` behind an open Step stream. `ShardConnector` makes them."""

    def __init__(
        self,
        *,
        address: str,
        description: EngineDescription,
        channel: grpc.aio.Channel,
        call: StepCall,
        stub: "ShardServiceAsyncStub",
    ) -> None:
        self._address = address
        self._stub = stub
        self._description = description
        self._channel = channel
        self._call = call
        self._plans = WriteQueue(call.write)
        self._unanswered: deque[tuple[int, asyncio.Future[StepResult]]] = deque()
        self._lost: asyncio.Future[ShardLost] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read(), name=f"steps of {address}")

    @property
    def description(self) -> EngineDescription:
        """What the engine is."""
        return self._description

    async def load_adapter(self, order: AdapterOrder) -> LoadedAdapter:
        """Loads an adapter while steps go on; see StepEngine.load_adapter."""
        self._check_alive()
        request = pb.LoadAdapterRequest(source=order.source, digest=order.digest)
        try:
            answer = await self._stub.LoadAdapter(request, timeout=ADAPTER_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise self._explain(error, "load an adapter") from error
        return LoadedAdapter(digest=answer.digest, rank=answer.rank, size_bytes=answer.size_bytes)

    async def unload_adapter(self, digest: str) -> None:
        """Takes an adapter from sequences to come; see StepEngine.unload_adapter."""
        # The order is not on the stream of the plans, and must not overtake one that still admits such a sequence.
        if earlier := [future for _, future in self._unanswered]:
            await asyncio.wait(earlier)
        self._check_alive()
        try:
            await self._stub.UnloadAdapter(pb.UnloadAdapterRequest(digest=digest), timeout=ADAPTER_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise self._explain(error, "unload an adapter") from error

    def step(self, plan: StepPlan) -> asyncio.Future[StepResult]:
        """Sends a plan and returns its result as a future.

        Raises (from the future):
            ShardLost: the stream broke; so did every unanswered step.
            PlanRejected: the shard says that the plan broke the contract.
        """
        future: asyncio.Future[StepResult] = asyncio.get_running_loop().create_future()
        # Whoever gives the engine up leaves futures behind that nobody awaits.
        future.add_done_callback(_retrieve)
        if self._lost.done():
            future.set_exception(self._lost.result())
        else:
            self._unanswered.append((plan.step_id, future))
            # A stream that takes no plan is lost, and whoever reads it learns why.
            with suppress(grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
                self._plans.put(plan_to_proto(plan))
        return future

    async def wait_lost(self) -> ShardLost:
        """Waits until the shard is gone, busy or idle, and returns why."""
        return await asyncio.shield(self._lost)

    async def aclose(self) -> None:
        """Gives the shard up. Unanswered steps fail with ShardLost. Safe to repeat."""
        self._lose(ShardLost(f"the connection to the shard at {self._address} was closed"))
        self._plans.close()
        self._call.cancel()
        self._reader.cancel()
        await asyncio.wait([self._reader])
        await self._channel.close()

    async def _read(self) -> None:
        try:
            async for response in self._call:
                self._resolve(result_from_proto(response))
            self._lose(ShardLost(f"the shard at {self._address} ended the stream"))
        except grpc.aio.AioRpcError as error:
            self._fail(error)
        except ValueError as error:
            self._lose(ShardLost(f"the shard at {self._address} cannot be understood: {error}"))

    def _resolve(self, result: StepResult) -> None:
        if not self._unanswered or self._unanswered[0][0] != result.step_id:
            expected = self._unanswered[0][0] if self._unanswered else "nothing"
            raise ValueError(f"it answered step {result.step_id} when {expected} was awaited")
        _, future = self._unanswered.popleft()
        if not future.done():
            future.set_result(result)

    def _fail(self, error: grpc.aio.AioRpcError) -> None:
        message = f"the shard at {self._address} was lost: {error.code().name}: {error.details()}"
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT and self._unanswered:
            # Answers come in order, so it is the oldest plan that was refused.
            _, future = self._unanswered.popleft()
            if not future.done():
                future.set_exception(PlanRejected(f"the shard at {self._address} refused a plan: {error.details()}"))
        self._lose(ShardLost(message))

    def _check_alive(self) -> None:
        if self._lost.done():
            raise self._lost.result()

    def _explain(self, error: grpc.aio.AioRpcError, task: str) -> HeadraceError:
        """Returns the shard's own error about an order, or that the shard is gone."""
        explained = error_from_rpc(error, self._address)
        if isinstance(explained, RequestError) and not isinstance(explained, DeadlineExceeded):
            return explained
        return ShardLost(f"the shard at {self._address} did not {task}: {explained.message}")

    def _lose(self, lost: ShardLost) -> None:
        if not self._lost.done():
            self._lost.set_result(lost)
        while self._unanswered:
            _, future = self._unanswered.popleft()
            if not future.done():
                future.set_exception(lost)


def _retrieve(future: asyncio.Future[StepResult]) -> None:
    if not future.cancelled():
        future.exception()
