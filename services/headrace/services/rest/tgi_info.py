"""`/info`, `/tokenize` and `/chat_tokenize`: what Text Generation Inference tells of a model and of a text."""

import asyncio
from importlib.metadata import version

from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from headrace.client import calls
from headrace.client.options import TokenizeChatOptions
from headrace.client.results import Tokenization
from headrace.contract.errors import Forbidden
from headrace.services.rest.openai_answer import json_response
from headrace.services.rest.openai_chat import ChatBody
from headrace.services.rest.sidecar import Exchange
from headrace.services.rest.tgi_fields import TokenizeBody


class Info(TypedDict):
    """What is served."""

    model_id: str
    model_sha: str | None
    model_pipeline_tag: str
    model_dtype: str
    max_concurrent_requests: int | None
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    max_client_batch_size: int
    router: str
    version: str
    sha: str | None
    docker_label: str | None


class SimpleToken(TypedDict):
    """A token and where it is in the text, in characters."""

    id: int
    text: str
    start: int
    stop: int


_RENDERED = frozenset(
    {
        "model",
        "messages",
        "tools",
        "tool_choice",
        "reasoning_effort",
        "chat_template",
        "chat_template_kwargs",
        "continue_final_message",
        "add_generation_prompt",
    }
)
"""The fields of a chat that change what the model reads."""


class ChatTokens(TypedDict):
    """A conversation as the model reads it."""

    tokenize_response: list[SimpleToken]
    templated_text: str


class ChatTokensBody(ChatBody):
    """A conversation to tokenize; how to answer it is taken, since the clients of TGI send it."""

    IGNORED = frozenset(ChatBody.model_fields) - _RENDERED


async def get_info(request: Request, exchange: Exchange) -> Response:
    """Describes the model and the limits."""
    del request
    model = await exchange.link.model("", exchange.context)
    info: Info = {
        "model_id": model.name,
        "model_sha": None,
        "model_pipeline_tag": "text-generation",
        "model_dtype": model.weight_type,
        "max_concurrent_requests": await _waiting_limit(exchange),
        "max_best_of": model.limits.completion_count,
        "max_stop_sequences": model.limits.stop_sequence_count,
        "max_input_tokens": model.limits.prompt_token_count,
        "max_total_tokens": model.limits.context_token_count,
        "max_client_batch_size": exchange.sidecar.limits.client_batch_count,
        "router": "headrace",
        "version": version("headrace"),
        "sha": None,
        "docker_label": None,
    }
    return json_response(info, exchange.headers())


async def _waiting_limit(exchange: Exchange) -> int | None:
    """Returns how many requests may wait; None where the caller's key tells of models and not of the load."""
    try:
        return (await exchange.link.unary(calls.get_load(), exchange.context)).waiting_limit
    except Forbidden:
        return None


async def tokenize(request: Request, exchange: Exchange) -> Response:
    """Returns the tokens of a text."""
    body = await exchange.read(request, TokenizeBody)
    call = calls.tokenize(body.inputs, {"add_special_tokens": body.add_special_tokens, "include_offsets": True})
    tokenization = await exchange.link.unary(call, exchange.context)
    # Beside the event loop: a text may be as large as a body, and other callers wait for their tokens.
    return await asyncio.to_thread(lambda: json_response(_tokens(tokenization), exchange.headers(body)))


async def tokenize_chat(request: Request, exchange: Exchange) -> Response:
    """Returns what the chat template makes of a conversation, and its tokens."""
    body = await exchange.read(request, ChatTokensBody)
    given = body.options("")
    options: TokenizeChatOptions = {
        "include_offsets": True,
        "model": given.get("model"),
        "tools": given.get("tools"),
        "tool_choice": given.get("tool_choice"),
        "template": given.get("template"),
        "template_arguments": given.get("template_arguments"),
        "continue_final_message": given.get("continue_final_message"),
    }
    tokenization = await exchange.link.unary(calls.tokenize_chat(body.messages, options), exchange.context)
    answer: ChatTokens = {"tokenize_response": _tokens(tokenization), "templated_text": tokenization.text}
    return json_response(answer, exchange.headers(body))


def _tokens(tokenization: Tokenization) -> list[SimpleToken]:
    encoded = tokenization.text.encode()
    # Spans are of bytes, TGI's of characters; a token may hold a part of one.
    characters = _character_offsets(tokenization.text)
    return [
        {
            "id": token_id,
            "text": encoded[span.start : span.end].decode(errors="replace"),
            "start": characters[span.start],
            "stop": characters[span.end],
        }
        for token_id, span in zip(tokenization.token_ids, tokenization.spans, strict=True)
    ]


def _character_offsets(text: str) -> list[int]:
    """Returns for each byte, and for the end, the character that it belongs to."""
    offsets: list[int] = []
    for index, character in enumerate(text):
        offsets += [index] * len(character.encode())
    return [*offsets, len(text)]
