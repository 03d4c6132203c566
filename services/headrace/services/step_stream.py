"""One router's stream of steps: gives its plans to the worker, and writes the answers in the same order."""

import asyncio
from collections.abc import AsyncIterable, Callable, Coroutine
from concurrent.futures import Future
from typing import TYPE_CHECKING

from headrace.contract.errors import InvalidRequest, PlanRejected
from headrace.contract.step import StepResult
from headrace.internal.v1 import shard_service_pb2 as pb
from headrace.services.convert_step import plan_from_proto, result_to_proto
from headrace.services.in_flight import Call
from headrace.services.telemetry.shard_metrics import StepMeter
from headrace.services.write_queue import WriteQueue
from headrace.shard.worker import Worker

if TYPE_CHECKING:  # imports of OpenTelemetry, which is not installed everywhere
    from headrace.services.telemetry.sequence_spans import SequenceSpans

Write = Callable[[pb.StepResponse], Coroutine[asyncio.Future[None], None, None]]
"""`ServicerContext.write` of the call."""


class StepStream:
    """Has a task that reads, and none that answers.

    NOTE: what a step costs here is taken from the engine's threads, which have the same cores. So an answer goes from
    the worker's thread to one callback of the event loop, which begins to write it.
    """

    def __init__(
        self, worker: Worker, call: Call, write: Write, meter: StepMeter, spans: "SequenceSpans | None"
    ) -> None:
        self._worker = worker
        self._call = call
        self._meter = meter
        self._spans = spans
        self._loop = asyncio.get_running_loop()
        self._answers = WriteQueue(write)
        self._unanswered_count = 0
        self._was_answered = asyncio.Event()
        self._has_read_all = False
        self._refusal: Exception | None = None
        """Ends the call once every plan is answered."""
        self._ended: asyncio.Future[Exception | None] = self._loop.create_future()

    async def run(self, requests: AsyncIterable[pb.StepRequest], is_current: Callable[[], bool]) -> None:
        """Answers every plan until no more will come, or one fails. Call once.

        Args:
            requests: The plans.
            is_current: Whether the worker is still this stream's. Asked right before a plan is given to it: a
                stream that was taken over must not slip one into its successor's batch.

        Raises:
            InvalidRequest: a plan broke the contract.
            Exception: the engine failed, or gRPC took no more messages.
        """
        reader = asyncio.create_task(self._read(requests, is_current))
        try:
            error = await self._ended
            await self._answers.flush()
            if error is not None:
                raise error
        finally:
            reader.cancel()
            self._answers.close()

    async def _read(self, requests: AsyncIterable[pb.StepRequest], is_current: Callable[[], bool]) -> None:
        limit = self._worker.description.steps_in_flight
        try:
            async for request in requests:
                while self._unanswered_count >= limit:
                    self._was_answered.clear()
                    await self._was_answered.wait()
                if self._answers.is_behind:
                    await self._answers.flush()
                if not is_current():
                    return
                self._submit(request)
        except Exception as error:  # noqa: BLE001  # raised where the handler waits
            self._refusal = error
        self._has_read_all = True
        self._end_if_answered()

    def _submit(self, request: pb.StepRequest) -> None:
        """Gives a plan to the worker.

        Raises:
            InvalidRequest: it cannot be understood.
        """
        try:
            plan = plan_from_proto(request)
        except ValueError as error:
            raise InvalidRequest.of("step_request", str(error)) from error
        self._unanswered_count += 1
        self._worker.submit(plan).add_done_callback(self._hand_over)
        if self._spans is not None:
            self._spans.note_plan(plan)

    def _hand_over(self, step: Future[StepResult]) -> None:
        """Called on the worker's thread."""
        self._loop.call_soon_threadsafe(self._answer, step)

    def _answer(self, step: Future[StepResult]) -> None:
        if self._ended.done():
            return
        self._unanswered_count -= 1
        self._was_answered.set()
        try:
            result = step.result()
            self._meter.add(result.timings)
            if self._spans is not None:
                self._spans.note_result(result)
            self._answers.put(result_to_proto(result))
            self._call.message_count += 1
        except PlanRejected as error:
            self._ended.set_result(InvalidRequest.of("step_request", error.message))
        except Exception as error:  # noqa: BLE001  # as above
            self._ended.set_result(error)
        else:
            self._end_if_answered()

    def _end_if_answered(self) -> None:
        if self._has_read_all and self._unanswered_count == 0 and not self._ended.done():
            self._ended.set_result(self._refusal)
