"""A server that keeps to headrace.v1 and does as each test tells it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from headrace.v1 import (
    embedding_service_pb2_grpc,
    generate_service_pb2_grpc,
    health_service_pb2,
    health_service_pb2_grpc,
    router_service_pb2,
    router_service_pb2_grpc,
)
from headrace.v1 import generate_service_pb2 as pb

ResponseT = TypeVar("ResponseT")
Context = grpc.aio.ServicerContext

SERVICE = "headrace.v1.GenerateService"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A status, with the details that a headrace server sends."""

    code: grpc.StatusCode
    reason: str = ""
    message: str = "no"
    retry_after_s: float | None = None
    pushback_ms: int | None = None

    @property
    def trailers(self) -> tuple[tuple[str, str | bytes], ...]:
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        details = [error_details_pb2.ErrorInfo(reason=self.reason, domain="headrace")] if self.reason else []
        if self.retry_after_s is not None:
            delay = Duration()
            delay.FromNanoseconds(round(self.retry_after_s * 1e9))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        for detail in details:
            packed = AnyMessage()
            packed.Pack(detail)
            status.details.append(packed)
        trailers: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", status.SerializeToString())]
        if self.pushback_ms is not None:
            trailers.append(("grpc-retry-pushback-ms", str(self.pushback_ms)))
        return tuple(trailers)


@dataclass
class Script:
    """What the server answers next, and what it was asked."""

    words: tuple[str, ...] = ("Once ", "upon ", "a ", "time")
    """One token and one delta each."""
    thoughts: tuple[str, ...] = ()
    """Reasoning before the words of a stream."""
    failures: list[Failure] = field(default_factory=list[Failure])
    """One for each of the next calls, before anything was sent; then calls succeed."""
    failure_after_words: Failure | None = None
    """Ends every generation stream in place of `finished`."""
    omits_finished: bool = False
    gate: asyncio.Event | None = None
    """Held back after the first word until this is set."""
    at_gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when an answer is held back."""
    requests: list[object] = field(default_factory=list[object])
    headers: list[dict[str, str | bytes]] = field(default_factory=list[dict[str, str | bytes]])
    remaining_s: list[float | None] = field(default_factory=list[float | None])
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a stream was cancelled by its caller."""
    answers: dict[str, object] = field(default_factory=dict[str, object])
    """Responses of the unary methods beside Generate, by name."""
    loads: tuple[router_service_pb2.WatchLoadResponse, ...] = ()

    async def begin(self, request: object, context: Context) -> None:
        self.requests.append(request)
        self.headers.append(dict(context.invocation_metadata() or ()))
        self.remaining_s.append(context.time_remaining())
        if self.failures:
            failure = self.failures.pop(0)
            await context.abort(failure.code, failure.message, failure.trailers)


class Aborted(Exception):  # what it is called in gRPC
    """One generation of several was ended with a status."""

    def __init__(self, error: pb.GenerationError) -> None:
        super().__init__(error.message)
        self.error = error


class OpeningContext:
    """What a generation that shares its call has of a call."""

    def __init__(self, opening: pb.GenerationOpening) -> None:
        self._opening = opening

    def invocation_metadata(self) -> Iterable[tuple[str, str]]:
        return self._opening.metadata.items()

    def time_remaining(self) -> float | None:
        return self._opening.timeout.ToNanoseconds() / 1e9 if self._opening.HasField("timeout") else None

    async def abort(self, code: grpc.StatusCode, message: str, trailers: Any = ()) -> None:
        details = dict(trailers).get("grpc-status-details-bin", b"")
        raise Aborted(pb.GenerationError(code=code.value[0], message=message, status_details=details))


class GenerateServicer(generate_service_pb2_grpc.GenerateServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: Context
    ) -> pb.GenerateResponse:
        await self._script.begin(request, context)
        if self._script.gate is not None:
            self._script.at_gate.set()
            try:
                await self._script.gate.wait()
            except asyncio.CancelledError:
                self._script.cancelled.set()
                raise
        words = self._script.words
        completion = pb.Completion(text="".join(words), token_ids=range(len(words)), end=end(len(words)))
        return pb.GenerateResponse(
            request_id=request.request_id or "chosen",
            model="m",
            completions=[completion],
            usage=usage(len(words)),
            seed=7,
        )

    async def GenerateStream(  # noqa: N802
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        script = self._script
        await script.begin(request, context)
        try:
            started = pb.GenerationStarted(
                request_id=request.request_id or "chosen", model="m", prompt_token_count=3, cached_token_count=2, seed=7
            )
            yield pb.GenerateStreamResponse(started=started)
            for thought in script.thoughts:
                yield pb.GenerateStreamResponse(delta=pb.GenerationDelta(reasoning=thought))
            for index, word in enumerate(script.words):
                yield pb.GenerateStreamResponse(delta=pb.GenerationDelta(text=word, token_ids=[index]))
                if index == 0 and script.gate is not None:
                    script.at_gate.set()
                    await script.gate.wait()
        except (asyncio.CancelledError, GeneratorExit):
            # The latter when the call is cancelled while gRPC writes what was yielded.
            script.cancelled.set()
            raise
        if script.failure_after_words is not None:
            failure = script.failure_after_words
            await context.abort(failure.code, failure.message, failure.trailers)
        if not script.omits_finished:
            count = len(script.words)
            yield pb.GenerateStreamResponse(finished=pb.GenerationFinished(ends=[end(count)], usage=usage(count)))

    async def GenerateMultiplexed(  # noqa: N802
        self, requests: AsyncIterator[pb.GenerateMultiplexedRequest], context: Context
    ) -> None:
        """Answers each generation as GenerateStream does, in a message for each event."""
        running: dict[int, asyncio.Task[None]] = {}
        writing = asyncio.Lock()

        async def write(event: pb.GenerationEvent) -> None:
            async with writing:
                await context.write(pb.GenerateMultiplexedResponse(events=[event]))

        async def answer_one(stream_id: int, opening: pb.GenerationOpening) -> None:
            try:
                async for response in self.GenerateStream(opening.request, OpeningContext(opening)):
                    await write(pb.GenerationEvent(stream_id=stream_id, response=response))
            except Aborted as aborted:
                await write(pb.GenerationEvent(stream_id=stream_id, error=aborted.error))

        try:
            async for request in requests:
                if request.HasField("open"):
                    running[request.stream_id] = asyncio.create_task(answer_one(request.stream_id, request.open))
                else:
                    running[request.stream_id].cancel()
            await asyncio.gather(*running.values(), return_exceptions=True)
        finally:
            for task in running.values():
                task.cancel()
            await asyncio.gather(*running.values(), return_exceptions=True)

    async def Tokenize(  # noqa: N802
        self, request: pb.TokenizeRequest, context: Context
    ) -> pb.TokenizeResponse:
        return await answer(self._script, "Tokenize", request, context)

    async def Detokenize(  # noqa: N802
        self, request: pb.DetokenizeRequest, context: Context
    ) -> pb.DetokenizeResponse:
        return await answer(self._script, "Detokenize", request, context)


def end(token_count: int) -> pb.CompletionEnd:
    return pb.CompletionEnd(reason=pb.FINISH_REASON_LENGTH, generated_token_count=token_count)


def usage(token_count: int) -> pb.Usage:
    return pb.Usage(prompt_token_count=3, cached_token_count=2, generated_token_count=token_count)


async def answer(script: Script, method: str, request: object, context: Context) -> object:
    await script.begin(request, context)
    return script.answers[method]


def method_of(script: Script, name: str) -> Callable[[object, Context], Awaitable[object]]:
    async def method(request: object, context: Context) -> object:
        return await answer(script, name, request, context)

    return method


class RouterServicer(router_service_pb2_grpc.RouterServiceServicer):
    """Every method but WatchLoad answers from the script."""

    def __init__(self, script: Script) -> None:
        self._script = script
        service = router_service_pb2.DESCRIPTOR.services_by_name["RouterService"]
        for name in set(service.methods_by_name) - {"WatchLoad"}:
            setattr(self, name, method_of(script, name))

    async def WatchLoad(  # noqa: N802
        self, request: object, context: Context
    ) -> AsyncIterator[object]:
        await self._script.begin(request, context)
        try:
            for load in self._script.loads:
                yield load
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self._script.cancelled.set()
            raise


class EmbeddingServicer(embedding_service_pb2_grpc.EmbeddingServiceServicer):
    def __init__(self, script: Script) -> None:
        self.Embed = method_of(script, "Embed")


class HealthServicer(health_service_pb2_grpc.HealthServiceServicer):
    def __init__(self, script: Script) -> None:
        service = health_service_pb2.DESCRIPTOR.services_by_name["HealthService"]
        for name in service.methods_by_name:
            setattr(self, name, method_of(script, name))


@dataclass(frozen=True, kw_only=True)
class ScriptedServer:
    target: str
    script: Script
    grpc_server: grpc.aio.Server
    health: health.aio.HealthServicer

    async def set_serving(self, *, is_serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self.health.set(SERVICE, status)


Serve = Callable[[], AbstractAsyncContextManager[ScriptedServer]]
MakeFailure = Callable[..., Failure]


@asynccontextmanager
async def serve_script() -> AsyncIterator[ScriptedServer]:
    script = Script()
    grpc_server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    health_servicer = health.aio.HealthServicer()
    generate_service_pb2_grpc.add_GenerateServiceServicer_to_server(GenerateServicer(script), grpc_server)
    embedding_service_pb2_grpc.add_EmbeddingServiceServicer_to_server(EmbeddingServicer(script), grpc_server)
    router_service_pb2_grpc.add_RouterServiceServicer_to_server(RouterServicer(script), grpc_server)
    health_service_pb2_grpc.add_HealthServiceServicer_to_server(HealthServicer(script), grpc_server)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, grpc_server)
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    server = ScriptedServer(target=f"127.0.0.1:{port}", script=script, grpc_server=grpc_server, health=health_servicer)
    await server.set_serving(is_serving=True)
    await grpc_server.start()
    try:
        yield server
    finally:
        await grpc_server.stop(None)


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with serve_script() as running:
        yield running


@pytest.fixture
def serve() -> Serve:
    """Starts further servers."""
    return serve_script


@pytest.fixture
def script(server: ScriptedServer) -> Script:
    return server.script


@pytest.fixture
def fail() -> MakeFailure:
    """Makes a failure for a script."""
    return Failure
