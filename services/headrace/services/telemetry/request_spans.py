"""The spans of each request that a router runs, by OpenTelemetry's conventions for generative AI."""

from typing import Final

from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

from headrace.contract.embedding import EmbeddingRequest
from headrace.contract.generation import ChatPrompt, GenerationRequest
from headrace.router.request_meter import COMPLETED, MeteredRequest
from headrace.services.telemetry.spans import TRACE_PARENT, Tracing, trace_parent_of

PROVIDER: Final = "headrace"


class RequestSpans:
    """Tells of requests when they have ended: the whole one, and in it the queue, the prompt and the tokens."""

    def __init__(self, tracing: Tracing, model: str) -> None:
        self._tracing = tracing
        self._model = model

    def tell(self, ended: MeteredRequest, outcome: str, ended_s: float) -> None:
        """Tells of a request whose call is traced."""
        request = ended.request
        if not request.trace_parent:
            return
        attributes = _attributes(request, self._model)
        if ended.request_id:
            attributes["gen_ai.response.id"] = ended.request_id
        if ended.prompt_token_count:
            attributes["gen_ai.usage.input_tokens"] = ended.prompt_token_count
        if ended.summary is not None:
            attributes["gen_ai.usage.output_tokens"] = ended.summary.usage.generated_token_count
            attributes["gen_ai.usage.cache_read.input_tokens"] = ended.summary.usage.cached_token_count
            attributes["gen_ai.response.finish_reasons"] = [end.reason.value for end in ended.summary.ends]
        span = self._tracing.begin(
            f"{_operation(request)} {self._model}",
            kind=SpanKind.INTERNAL,
            headers={TRACE_PARENT: request.trace_parent},
            attributes=attributes,
            begun_s=ended.received_s,
        )
        self._tell_phases(ended, trace_parent_of(span))
        self._tracing.end(span, ended_s=ended_s, error="" if outcome == COMPLETED else outcome)

    def _tell_phases(self, ended: MeteredRequest, trace_parent: str) -> None:
        if ended.summary is None or ended.submitted_s is None:
            return
        timings, moment_s = ended.summary.timings, ended.submitted_s
        for name, duration_s in (
            ("queue", timings.queued_s), ("prefill", timings.prefill_s), ("decode", timings.decode_s),
        ):  # fmt: skip
            if duration_s > 0:
                headers = {TRACE_PARENT: trace_parent}
                span = self._tracing.begin(
                    name, kind=SpanKind.INTERNAL, headers=headers, attributes={}, begun_s=moment_s
                )
                moment_s += duration_s
                self._tracing.end(span, ended_s=moment_s)


def _attributes(request: GenerationRequest | EmbeddingRequest, model: str) -> dict[str, AttributeValue]:
    """Returns what a request asks for, without what it says: never a prompt."""
    known: dict[str, AttributeValue | None] = {
        "gen_ai.operation.name": _operation(request),
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": request.model or model,
        "gen_ai.response.model": model,
    }
    if isinstance(request, GenerationRequest):
        known |= {
            "gen_ai.request.max_tokens": request.stopping.max_new_token_count,
            "gen_ai.request.temperature": request.sampling.temperature,
            "gen_ai.request.top_p": request.sampling.top_p,
            "gen_ai.request.top_k": request.sampling.top_k,
            "gen_ai.request.frequency_penalty": request.sampling.frequency_penalty,
            "gen_ai.request.presence_penalty": request.sampling.presence_penalty,
            "gen_ai.request.choice.count": request.completion_count,
        }
    else:
        known["gen_ai.embeddings.dimension.count"] = request.dimension_count
    return {name: value for name, value in known.items() if value is not None}


def _operation(request: GenerationRequest | EmbeddingRequest) -> str:
    if isinstance(request, EmbeddingRequest):
        return "embeddings"
    return "chat" if isinstance(request.prompt, ChatPrompt) else "text_completion"
