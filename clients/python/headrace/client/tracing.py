"""The spans of a client's calls, in the caller's own OpenTelemetry. Imported only for a client that was given one."""

from types import TracebackType
from typing import Final, Self

import grpc
from google.protobuf.message import Message
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from headrace.contract.errors import HeadraceError
from headrace.v1 import embedding_service_pb2 as embedding_pb
from headrace.v1 import generate_service_pb2 as generate_pb

_PROPAGATOR: Final = TraceContextTextMapPropagator()

_SAMPLING_ATTRIBUTES: Final = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
}


class ClientTracer:
    """Begins a span for each call, as a child of whatever span is the current one."""

    def __init__(self, provider: TracerProvider, target: str) -> None:
        """Takes what the calls go to, as gRPC resolves it."""
        self._tracer = provider.get_tracer("headrace.client")
        self._target = target

    def begin(self, path: str, request: Message) -> "ClientSpan":
        """Returns the span of a call to a method, by its path in HTTP/2."""
        attributes: dict[str, AttributeValue] = {
            "server.address": self._target,
            "rpc.system": "grpc",
            "rpc.service": path.split("/")[1],
            "rpc.method": path.split("/")[2],
        }
        name = f"{attributes['rpc.service']!s}/{attributes['rpc.method']!s}"
        if isinstance(request, generate_pb.GenerateRequest | embedding_pb.EmbedRequest):
            operation = _operation(request)
            name = f"{operation} {request.model}".rstrip()
            attributes |= {"gen_ai.operation.name": operation, "gen_ai.provider.name": "headrace"}
            attributes |= _asked(request)
        return ClientSpan(self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes))


class ClientSpan:
    """One call: a context manager for one that is answered at once, `end_stream` for the others."""

    def __init__(self, span: Span) -> None:
        self._span = span
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, set_span_in_context(span))
        self.headers = tuple(carrier.items())
        """By which the server goes on with the trace."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if isinstance(error, HeadraceError):
            self._end(error.reason)
        else:
            self._end("" if error is None else type(error).__name__)

    def end_stream(self, code: grpc.StatusCode) -> None:
        """Ends the span of a stream that is over."""
        number: int = code.value[0]
        self._span.set_attribute("rpc.grpc.status_code", number)
        self._end("" if code is grpc.StatusCode.OK else code.name)

    def note_answer(self, response: Message) -> None:
        """Adds what an answer says of itself."""
        if isinstance(response, generate_pb.GenerateResponse):
            self._span.set_attribute("gen_ai.response.id", response.request_id)
            self._span.set_attribute("gen_ai.response.model", response.model)
            self._span.set_attribute("gen_ai.usage.input_tokens", response.usage.prompt_token_count)
            self._span.set_attribute("gen_ai.usage.output_tokens", response.usage.generated_token_count)

    def _end(self, error: str) -> None:
        if error:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


def _operation(request: generate_pb.GenerateRequest | embedding_pb.EmbedRequest) -> str:
    if isinstance(request, embedding_pb.EmbedRequest):
        return "embeddings"
    return "chat" if request.HasField("chat") else "text_completion"


def _asked(request: generate_pb.GenerateRequest | embedding_pb.EmbedRequest) -> dict[str, AttributeValue]:
    """Returns the options that were set; never a prompt."""
    asked: dict[str, AttributeValue] = {"gen_ai.request.model": request.model} if request.model else {}
    if isinstance(request, generate_pb.GenerateRequest):
        if request.stopping.HasField("max_new_token_count"):
            asked["gen_ai.request.max_tokens"] = request.stopping.max_new_token_count
        if request.HasField("completion_count"):
            asked["gen_ai.request.choice.count"] = request.completion_count
        for field, value in request.sampling.ListFields():
            if field.name in _SAMPLING_ATTRIBUTES:
                asked[_SAMPLING_ATTRIBUTES[field.name]] = value
    return asked
