"""The shape of the answers of `/v1/responses`: an object whose output is a list of items."""

import time
from typing import Any, Literal

from typing_extensions import TypedDict

from headrace.client.results import CompletionEnd, FinishReason, Generation, Usage
from headrace.contract.errors import HeadraceError
from headrace.services.rest.answer_blocks import Block, BlockKind, blocks_of
from headrace.services.rest.errors import message_of, words_of
from headrace.services.rest.openai_answer import finish_reason
from headrace.services.rest.responses_fields import FIELD_NAMES, ResponsesBody
from headrace.services.rest.responses_logprobs import tokens_of_text, write_logprobs


class CachedTokens(TypedDict):
    """Input tokens by where they came from."""

    cached_tokens: int


class ReasoningTokens(TypedDict):
    """Output tokens by what they are."""

    reasoning_tokens: int
    """Always 0: they are counted together with the others."""


class ResponsesUsage(TypedDict):
    """Token counts."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class IncompleteDetails(TypedDict):
    """Why an answer is cut short."""

    reason: str


class ResponseFailure(TypedDict):
    """Why there is no answer."""

    code: str
    message: str


class ResponseObject(TypedDict):
    """An answer, and what was asked."""

    id: str
    object: Literal["response"]
    created_at: int
    status: str
    background: Literal[False]
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, Any]
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: dict[str, Any]
    store: Literal[False]
    temperature: float | None
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["disabled"]
    usage: ResponsesUsage | None


_ID_PREFIXES = {BlockKind.REASONING: "rs", BlockKind.TEXT: "msg", BlockKind.TOOL_CALL: "fc"}


def opened_response(body: ResponsesBody, request_id: str, model: str) -> ResponseObject:
    """Returns an answer that has just begun."""
    form = body.text.format if body.text else None
    return {
        "id": f"resp_{request_id}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "store": False,
        "temperature": body.temperature,
        "text": {"format": {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)},
        "tool_choice": body.tool_choice or "auto",
        "tools": [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
                "strict": tool.strict,
            }
            for tool in body.tools or ()
        ],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": None,
    }


def response_of(body: ResponsesBody, generation: Generation) -> ResponseObject:
    """Returns a whole answer.

    Raises:
        RequestAborted: someone ended it.
    """
    completion = generation.completions[0]
    opened = opened_response(body, generation.request_id, generation.model)
    logprobs = write_logprobs(tokens_of_text(completion.logprobs, completion.text, completion.reasoning))
    return ended_response(opened, blocks_of(completion), completion.end, generation.usage, logprobs)


def ended_response(
    opened: ResponseObject, blocks: list[Block], end: CompletionEnd, usage: Usage, logprobs: list[dict[str, Any]]
) -> ResponseObject:
    """Returns an answer that is over. `logprobs` are those of its text.

    Raises:
        RequestAborted: someone ended it.
    """
    is_cut_short = finish_reason(end) == "length"
    # A model that called a tool had its say; only the end of the budget leaves something unsaid.
    status = "incomplete" if is_cut_short and end.reason is not FinishReason.TOOL_CALL else "completed"
    last = len(blocks) - 1
    items = [
        output_item(
            block, opened["id"], status if block.index == last else "completed", [content_part(block, logprobs)]
        )
        for block in blocks
    ]
    return {
        **opened,
        "status": status,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "output": items,
        "usage": {
            "input_tokens": usage.prompt_token_count,
            "input_tokens_details": {"cached_tokens": usage.cached_token_count},
            "output_tokens": usage.generated_token_count,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt_token_count + usage.generated_token_count,
        },
    }


def failed_response(opened: ResponseObject, error: HeadraceError) -> ResponseObject:
    """Returns an answer that came to nothing."""
    failure: ResponseFailure = {"code": words_of(error).openai_type, "message": message_of(error, FIELD_NAMES)}
    return {**opened, "status": "failed", "error": failure}


def item_id(block: Block, response_id: str) -> str:
    """Returns the id of the item that a block becomes."""
    return f"{_ID_PREFIXES[block.kind]}_{response_id.removeprefix('resp_')}_{block.index}"


def output_item(block: Block, response_id: str, status: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the item that a block becomes; with no parts as a stream opens it."""
    item: dict[str, Any] = {"id": item_id(block, response_id), "status": status}
    match block.kind:
        case BlockKind.REASONING:
            return {"type": "reasoning", **item, "summary": [], "content": parts}
        case BlockKind.TEXT:
            return {"type": "message", **item, "role": "assistant", "content": parts}
        case BlockKind.TOOL_CALL:
            called = {"call_id": block.call_id, "name": block.name, "arguments": block.text}
            return {"type": "function_call", **item, **called}


def content_part(block: Block, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the content of an item of text, with the log-probabilities of its tokens, or of reasoning."""
    if block.kind is BlockKind.REASONING:
        return {"type": "reasoning_text", "text": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": logprobs}
