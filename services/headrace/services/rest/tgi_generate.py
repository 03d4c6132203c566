"""`/generate`, `/generate_stream`, `/` and `/invocations`: Text Generation Inference's generation."""

from dataclasses import replace

from pydantic import ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from headrace.client import calls
from headrace.client.results import Generation
from headrace.contract.errors import HeadraceError, InvalidRequest
from headrace.services.rest import openai_fields
from headrace.services.rest import tgi_answer as answer
from headrace.services.rest.event_stream import EventStreamResponse, open_all
from headrace.services.rest.field_naming import named_after
from headrace.services.rest.http_request import while_connected
from headrace.services.rest.json_body import parse_body
from headrace.services.rest.openai_answer import json_response
from headrace.services.rest.openai_chat import create_chat_completion
from headrace.services.rest.openai_completions import create_completion
from headrace.services.rest.openai_fields import Body
from headrace.services.rest.sidecar import Exchange
from headrace.services.rest.tgi_fields import GenerateBody, PathBody, StreamBody
from headrace.services.rest.tgi_stream import Endings, TokenWriter


class AnyBody(Body):
    """A body of TGI's own protocol or of OpenAI's, told apart by its fields."""

    model_config = ConfigDict(extra="allow")


async def generate(request: Request, exchange: Exchange) -> Response:
    """Continues a text and returns all of it at once."""
    body = await exchange.read(request, PathBody)
    generated = await _generate(request, exchange, body)
    return json_response(generated.content, generated.headers)


async def generate_stream(request: Request, exchange: Exchange) -> Response:
    """Continues a text, with an event for each token."""
    body = await exchange.read(request, StreamBody)
    return await _stream(request, exchange, body)


async def generate_either(request: Request, exchange: Exchange) -> Response:
    """Continues a text at once or as a stream, as `stream` says; at once the answer is a list of one."""
    body = await exchange.read(request, GenerateBody)
    if body.stream:
        return await _stream(request, exchange, body)
    generated = await _generate(request, exchange, body)
    return json_response([generated.content], generated.headers)


async def invoke(request: Request, exchange: Exchange) -> Response:
    """Takes what SageMaker passes on: a chat, a completion, or a body of `/`."""
    raw = await exchange.read_bytes(request)
    given = parse_body(raw, AnyBody).model_extra or {}
    peeked = replace(exchange, peeked=raw)
    if "messages" not in given and "prompt" not in given:
        return await generate_either(request, peeked)
    create = create_chat_completion if "messages" in given else create_completion
    try:
        return await create(request, peeked)
    except HeadraceError as error:
        # Of TGI's shape as anywhere on this path, but in the words of the body.
        return answer.error_response(error, exchange.headers(), names=openai_fields.FIELD_NAMES)


class _Generated:
    def __init__(self, content: answer.Generated, headers: dict[str, str]) -> None:
        self.content = content
        self.headers = headers


async def _generate(request: Request, exchange: Exchange, body: GenerateBody) -> _Generated:
    parameters = body.parameters
    wants_details = parameters.has_details
    options = parameters.options(exchange.router_request_id(), with_logprobs=wants_details)
    with named_after((), parameters.aliases()):
        work = exchange.link.unary(calls.generate(body.inputs, options), exchange.context)
        generation = await while_connected(request, work)
    prompt = body.inputs if parameters.return_full_text else ""
    answer.finish_reason(generation.completions[0].end.reason)
    details = None
    if wants_details:
        model = await exchange.link.model(generation.model, exchange.context)
        details = answer.details_of(generation, model.end_of_sequence_token_ids, prompt)
    content: answer.Generated = {"generated_text": prompt + generation.completions[0].text, "details": details}
    return _Generated(content, exchange.headers(body) | _timing_headers(generation, body.inputs))


async def _stream(request: Request, exchange: Exchange, body: GenerateBody) -> Response:
    parameters = body.parameters
    if parameters.best_of not in (None, 1):
        raise InvalidRequest.of("parameters.best_of", "has no place in a stream")
    if parameters.decoder_input_details:
        raise InvalidRequest.of("parameters.decoder_input_details", "has no place in a stream")
    options = parameters.options(exchange.router_request_id(), with_logprobs=True)
    model = await exchange.link.model("", exchange.context)
    with named_after((), parameters.aliases()):
        call = exchange.link.stream(calls.stream(body.inputs, options), exchange.context)
        [stream] = await while_connected(request, open_all([call], exchange.link.target))
    endings = Endings(
        model=model,
        max_new_token_count=parameters.max_new_tokens or model.default_max_new_token_count,
        stop_sequences=parameters.stop or parameters.stop_sequences or (),
    )
    writer = TokenWriter(endings, prompt=body.inputs if parameters.return_full_text else "")
    headers = exchange.headers(body) | {"x-compute-characters": str(len(body.inputs))}
    return EventStreamResponse([(stream, writer)], closing=lambda: b"", headers=headers)


def _timing_headers(generation: Generation, inputs: str) -> dict[str, str]:
    timings, usage = generation.timings, generation.usage
    inference_s = timings.prefill_s + timings.decode_s
    return {
        "x-compute-time": f"{timings.queued_s + inference_s:.6f}",
        "x-compute-characters": str(len(inputs)),
        "x-total-time": _ms(timings.queued_s + inference_s),
        "x-queue-time": _ms(timings.queued_s),
        "x-inference-time": _ms(inference_s),
        "x-time-per-token": _ms(inference_s / max(1, usage.generated_token_count)),
        "x-prompt-tokens": str(usage.prompt_token_count),
        "x-generated-tokens": str(usage.generated_token_count),
    }


def _ms(seconds: float) -> str:
    return str(round(seconds * 1000))
