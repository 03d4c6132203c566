"""ShardService: feeds the plans of one router at a time to the worker, and says how far the shard is."""

import asyncio
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Any

from grpc.aio import ServicerContext

from headrace.contract.adapter import AdapterOrder
from headrace.contract.engine import EngineDescription
from headrace.contract.errors import InvalidRequest, NotReady, ShardLost
from headrace.internal.v1 import shard_service_pb2 as pb
from headrace.internal.v1.shard_service_pb2_grpc import ShardServiceServicer
from headrace.services.convert_step import description_to_proto
from headrace.services.convert_vocabulary import vocabulary_from_proto
from headrace.services.in_flight import Call, current_call
from headrace.services.log import Event, logger
from headrace.services.step_stream import StepStream
from headrace.services.telemetry.shard_metrics import StepMeter
from headrace.shard.worker import Worker

if TYPE_CHECKING:  # imports of OpenTelemetry, which is not installed everywhere
    from headrace.services.telemetry.sequence_spans import SequenceSpans
    from headrace.services.telemetry.spans import Tracing


class ShardServicer(ShardServiceServicer):
    """Starts in the state STARTING; `serve` or `fail` ends it."""

    def __init__(self, *, instance_id: str, tracing: "Tracing | None" = None) -> None:
        self._instance_id = instance_id
        self._tracing = tracing
        self._state = pb.SHARD_STATE_STARTING
        self._detail = "starting"
        self.meter = StepMeter()
        """For reading."""
        self._worker: Worker | None = None
        self._holder: Call | None = None

    @property
    def engine(self) -> EngineDescription | None:
        """What the shard runs; None while it starts."""
        return None if self._worker is None else self._worker.description

    def note_progress(self, detail: str) -> None:
        """Tells routers what the shard is doing while it starts."""
        self._detail = detail

    def serve(self, worker: Worker) -> None:
        """Takes steps from now on. The worker stays the caller's to close, after the server has stopped."""
        self._worker = worker
        self._state = pb.SHARD_STATE_SERVING
        self._detail = "serving"

    def fail(self, detail: str) -> None:
        """Tells routers that the shard can never start, and why."""
        self._state = pb.SHARD_STATE_FAILED
        self._detail = detail

    async def Describe(  # noqa: N802  # the method's name in the contract
        self, _request: pb.DescribeRequest, _context: ServicerContext[Any, Any]
    ) -> pb.DescribeResponse:
        """Returns what the shard runs and how far it is in starting."""
        worker = self._worker
        return pb.DescribeResponse(
            state=self._state,
            detail=self._detail,
            instance_id=self._instance_id,
            engine=None if worker is None else description_to_proto(worker.description),
            rank=0,
            rank_count=1,
        )

    async def LoadVocabulary(  # noqa: N802  # the method's name in the contract
        self, request: pb.LoadVocabularyRequest, _context: ServicerContext[Any, Any]
    ) -> pb.LoadVocabularyResponse:
        """Tells the engine the model's tokens.

        Raises:
            NotReady: the engine has not started.
            FeatureUnsupported: the engine knows no grammars.
            InvalidRequest: the tokens cannot be understood.
        """
        worker = self._ready_worker()
        try:
            await asyncio.wrap_future(worker.load_vocabulary(vocabulary_from_proto(request)))
        except ValueError as error:
            raise InvalidRequest.of("vocabulary", str(error)) from error
        return pb.LoadVocabularyResponse()

    async def LoadAdapter(  # noqa: N802  # the method's name in the contract
        self, request: pb.LoadAdapterRequest, _context: ServicerContext[Any, Any]
    ) -> pb.LoadAdapterResponse:
        """Loads an adapter while steps go on.

        Raises:
            NotReady: the engine has not started.
            ShardLost: another router took the shard over meanwhile.
            RequestError: as Engine.prepare_adapter.
        """
        order = AdapterOrder(source=request.source, digest=request.digest)
        loaded = await asyncio.wrap_future(self._ready_worker().load_adapter(order))
        return pb.LoadAdapterResponse(digest=loaded.digest, rank=loaded.rank, size_bytes=loaded.size_bytes)

    async def UnloadAdapter(  # noqa: N802  # the method's name in the contract
        self, request: pb.UnloadAdapterRequest, _context: ServicerContext[Any, Any]
    ) -> pb.UnloadAdapterResponse:
        """Takes an adapter from sequences to come.

        Raises:
            NotReady: the engine has not started.
        """
        await asyncio.wrap_future(self._ready_worker().drop_adapter(request.digest))
        return pb.UnloadAdapterResponse()

    async def Step(  # type: ignore[override]  # noqa: N802  # the stub knows generators alone
        self, request_iterator: AsyncIterable[pb.StepRequest], context: ServicerContext[Any, Any]
    ) -> None:
        """Executes steps in order. A newer stream ends this one with ABORTED.

        The initial metadata tells the caller that the batch is empty and its own.

        Raises:
            NotReady: the engine has not started.
            InvalidRequest: a plan broke the contract.
        """
        worker = self._ready_worker()
        call = current_call()
        self._take_over(call)
        spans = None if self._tracing is None else _sequence_spans(self._tracing)
        try:
            await asyncio.wrap_future(worker.reset())
            await context.send_initial_metadata(())
            stream = StepStream(worker, call, context.write, self.meter, spans)
            await stream.run(request_iterator, lambda: self._holder is call)
        finally:
            if self._holder is call:
                self._holder = None
                worker.reset()
            if spans is not None:
                spans.close()
            logger().info(Event.STEP_STREAM_ENDED)

    def _ready_worker(self) -> Worker:
        if self._worker is None:
            raise NotReady(f"the shard is not ready: {self._detail}", retry_after_s=1.0)
        return self._worker

    def _take_over(self, call: Call) -> None:
        previous, self._holder = self._holder, call
        if previous is not None:
            previous.end(ShardLost("another router took the shard over", tokens_sent=True))
            logger().warning(Event.STEP_STREAM_TAKEN_OVER)
        self.meter.stream_count += 1
        logger().info(Event.STEP_STREAM_OPENED)


def _sequence_spans(tracing: "Tracing") -> "SequenceSpans":
    from headrace.services.telemetry.sequence_spans import SequenceSpans  # noqa: PLC0415  # see above

    return SequenceSpans(tracing)
