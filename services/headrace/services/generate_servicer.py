"""GenerateService over the router's pipeline."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import grpc.aio

from headrace.contract.clock import Clock
from headrace.contract.errors import InvalidRequest
from headrace.contract.generation import GenerationEvent, GenerationRequest, GenerationStarted
from headrace.router.pipeline import Pipeline
from headrace.services.call_frame import CallFrames, name_call
from headrace.services.convert_event import response_to_proto
from headrace.services.convert_request import request_from_proto, tokenize_prompt_from_proto
from headrace.services.in_flight import current_call
from headrace.services.joined_write import Outbox
from headrace.services.multiplexed_call import GenerationContext, MultiplexedCall
from headrace.services.stall_watch import StallWatch
from headrace.services.stream_writer import CallSink, MessageSink, StreamWriter, WriteRound
from headrace.v1 import generate_service_pb2 as pb
from headrace.v1 import generate_service_pb2_grpc


class GenerateServicer(generate_service_pb2_grpc.GenerateServiceServicer):
    """Converts and relays; every decision is the pipeline's."""

    def __init__(
        self,
        pipeline: Pipeline,
        stall_watch: StallWatch,
        clock: Clock,
        *,
        frames: CallFrames,
        departure: asyncio.Event,
    ) -> None:
        """Takes what the calls of the server run in, and what is set when it begins to go away."""
        self._pipeline = pipeline
        self._frames = frames
        self._departure = departure
        self._quotas = pipeline.desk.quotas
        self._stall_watch = stall_watch
        self._clock = clock
        self._write_round = WriteRound()

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse]
    ) -> pb.GenerateResponse:
        """Returns whole completions."""
        name_call(request.request_id)
        asked = self._asked(request, context.time_remaining())
        events: list[GenerationEvent] = []
        async with aclosing(self._pipeline.generate(asked)) as generation:
            async for event in generation:
                if isinstance(event, GenerationStarted):
                    name_call(event.request_id)
                events.append(event)
        return response_to_proto(events)

    async def GenerateStream(  # type: ignore[override]  # noqa: N802
        # The stubs know streaming handlers as generators only. A generator would
        # cost a task's turns for every token, and hide whether a write waits for the reader.
        self,
        request: pb.GenerateRequest,
        context: grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateStreamResponse],
    ) -> None:
        """Streams completions as their tokens are sampled."""
        async with self._writer(request, context.time_remaining(), CallSink(context.write)) as writer:
            with self._stall_watch.watch(writer):
                await writer.run()

    async def GenerateMultiplexed(  # type: ignore[override]  # noqa: N802  # as above
        self,
        request_iterator: AsyncIterable[pb.GenerateMultiplexedRequest],
        context: grpc.aio.ServicerContext[pb.GenerateMultiplexedRequest, pb.GenerateMultiplexedResponse],
    ) -> None:
        """Streams the completions of many requests over one call."""
        # Now, since gRPC would send them once more with a status that comes while the first message is being written.
        await context.send_initial_metadata(())
        outbox = Outbox(context.write, current_call(), self._clock)
        call = MultiplexedCall(self._frames, self._answer, outbox, self._clock)
        with self._stall_watch.watch(outbox):
            await call.run(request_iterator, self._departure)

    async def _answer(self, request: pb.GenerateRequest, context: GenerationContext) -> None:
        # Whether the reader has stalled is seen where the messages of all generations are written.
        async with self._writer(request, context.time_remaining(), context) as writer:
            await writer.run()

    @asynccontextmanager
    async def _writer(
        self, request: pb.GenerateRequest, remaining_s: float | None, sink: MessageSink
    ) -> AsyncIterator[StreamWriter]:
        """Admits a request, and has what comes of it written for the time of the block."""
        name_call(request.request_id)
        async with self._pipeline.open(self._asked(request, remaining_s)) as active:
            name_call(active.request.request_id)
            yield StreamWriter(active.stream, sink, current_call(), self._write_round, self._clock)

    async def Tokenize(  # noqa: N802
        self, request: pb.TokenizeRequest, _context: grpc.aio.ServicerContext[pb.TokenizeRequest, pb.TokenizeResponse]
    ) -> pb.TokenizeResponse:
        """Returns the token ids of a prompt."""
        prompt = tokenize_prompt_from_proto(request)
        if prompt is None:
            raise InvalidRequest.of("prompt", "one of text and chat must be set")
        add_special_tokens = request.add_special_tokens if request.HasField("add_special_tokens") else None
        with self._quotas.enter(current_call().caller.tenant):
            tokenized = await self._pipeline.tokenize(
                prompt, model=request.model, add_special_tokens=add_special_tokens
            )
        response = pb.TokenizeResponse(token_ids=tokenized.token_ids, text=tokenized.text)
        if request.include_offsets:
            response.spans.extend(pb.TextSpan(start=start, end=end) for start, end in tokenized.spans)
        return response

    async def Detokenize(  # noqa: N802
        self,
        request: pb.DetokenizeRequest,
        _context: grpc.aio.ServicerContext[pb.DetokenizeRequest, pb.DetokenizeResponse],
    ) -> pb.DetokenizeResponse:
        """Returns the text of token ids."""
        with self._quotas.enter(current_call().caller.tenant):
            text = await self._pipeline.detokenize(
                tuple(request.token_ids),
                model=request.model,
                include_special_tokens=request.include_special_tokens,
            )
        return pb.DetokenizeResponse(text=text)

    def _asked(self, request: pb.GenerateRequest, remaining_s: float | None) -> GenerationRequest:
        call = current_call()
        return request_from_proto(
            request,
            deadline_s=self._deadline_s(remaining_s),
            tenant=call.caller.tenant,
            trace_parent=call.trace_parent,
        )

    def _deadline_s(self, remaining_s: float | None) -> float | None:
        """Returns the caller's deadline as a moment on our clock."""
        return None if remaining_s is None else self._clock.now() + remaining_s
