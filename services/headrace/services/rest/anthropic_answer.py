"""The shapes of Anthropic's answers, and its errors."""

from collections.abc import Mapping
from typing import Any, Literal

import orjson
from starlette.responses import Response
from typing_extensions import TypedDict

from headrace.client.results import CompletionEnd, FinishReason, Generation, Usage
from headrace.contract.errors import HeadraceError
from headrace.services.rest.answer_blocks import Block, BlockKind, blocks_of
from headrace.services.rest.anthropic_fields import FIELD_NAMES
from headrace.services.rest.errors import advice_of, message_of, words_of
from headrace.services.rest.http_request import REQUEST_ID_HEADER
from headrace.services.rest.openai_answer import aborted, json_response

OWN_REQUEST_ID_HEADER = "request-id"
"""Where Anthropic's clients look for the request's id."""


class AnthropicErrorDetail(TypedDict):
    """What went wrong."""

    type: str
    message: str


class AnthropicError(TypedDict):
    """The body of every error."""

    type: Literal["error"]
    error: AnthropicErrorDetail
    request_id: str | None


class AnthropicUsage(TypedDict):
    """Token counts."""

    input_tokens: int
    """Prompt tokens that were not found in the prefix cache."""
    output_tokens: int
    cache_read_input_tokens: int
    """Prompt tokens that were."""
    cache_creation_input_tokens: int
    """Always 0: keeping a prefix has no price here."""


class AnthropicAnswer(TypedDict):
    """The assistant's message."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    stop_sequence: str | None
    usage: AnthropicUsage


class TokenCount(TypedDict):
    """Length of a prompt."""

    input_tokens: int


_STOP_REASONS = {
    FinishReason.END_OF_SEQUENCE: "end_turn",
    FinishReason.STOP_TOKEN: "end_turn",
    FinishReason.STOP_SEQUENCE: "stop_sequence",
    FinishReason.TOOL_CALL: "tool_use",
    FinishReason.CONTEXT_LIMIT: "model_context_window_exceeded",
}


def error_body(error: HeadraceError, request_id: str | None) -> AnthropicError:
    """Returns an error in Anthropic's shape."""
    return {
        "type": "error",
        "error": {"type": words_of(error).anthropic_type, "message": message_of(error, FIELD_NAMES)},
        "request_id": request_id,
    }


def error_response(error: HeadraceError, headers: Mapping[str, str]) -> Response:
    """Returns an error as a whole response."""
    body = error_body(error, headers.get(REQUEST_ID_HEADER))
    return json_response(body, {**own_headers(headers), **advice_of(error)}, words_of(error).status)


def own_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Returns the headers of an answer, with the request's id where Anthropic's clients look for it."""
    request_id = headers.get(REQUEST_ID_HEADER)
    return dict(headers) if request_id is None else {**headers, OWN_REQUEST_ID_HEADER: request_id}


def stop_reason(end: CompletionEnd, *, has_tool_calls: bool) -> str:
    """Returns why a completion ended.

    Raises:
        RequestAborted: someone ended it; Anthropic has no word for half an answer.
    """
    if end.reason is FinishReason.CANCELLED:
        raise aborted()
    reason = _STOP_REASONS.get(end.reason, "max_tokens")
    return "tool_use" if has_tool_calls and reason == "end_turn" else reason


def usage_of(usage: Usage) -> AnthropicUsage:
    """Returns token counts."""
    return {
        "input_tokens": usage.prompt_token_count - usage.cached_token_count,
        "output_tokens": usage.generated_token_count,
        "cache_read_input_tokens": usage.cached_token_count,
        "cache_creation_input_tokens": 0,
    }


def message_of_generation(generation: Generation) -> AnthropicAnswer:
    """Returns a whole answer.

    Raises:
        RequestAborted: as `stop_reason`.
    """
    completion = generation.completions[0]
    return {
        "id": f"msg_{generation.request_id}",
        "type": "message",
        "role": "assistant",
        "model": generation.model,
        "content": [content_block(block) for block in blocks_of(completion)],
        "stop_reason": stop_reason(completion.end, has_tool_calls=bool(completion.tool_calls)),
        "stop_sequence": completion.end.stop_sequence or None,
        "usage": usage_of(generation.usage),
    }


def content_block(block: Block) -> dict[str, Any]:
    """Returns a block; an empty one as a stream opens it."""
    match block.kind:
        case BlockKind.REASONING:
            return {"type": "thinking", "thinking": block.text, "signature": ""}
        case BlockKind.TEXT:
            return {"type": "text", "text": block.text, "citations": None}
        case BlockKind.TOOL_CALL:
            arguments = orjson.loads(block.text) if block.text else {}
            return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": arguments}
