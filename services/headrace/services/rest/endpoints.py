"""Every endpoint: its path, the protocol it speaks, who answers it, and the shapes of what it takes and returns."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from headrace.contract.errors import HeadraceError
from headrace.services.rest import anthropic_answer, openai_answer, openai_fields, responses_fields, tgi_answer
from headrace.services.rest.anthropic_fields import MessagesBody, PromptBody
from headrace.services.rest.anthropic_messages import count_tokens, create_message
from headrace.services.rest.errors import statuses_of
from headrace.services.rest.health import get_health
from headrace.services.rest.openai_chat import ChatBody, ChatCompletion, create_chat_completion
from headrace.services.rest.openai_completions import CompletionBody, TextCompletion, create_completion
from headrace.services.rest.openai_embeddings import EmbeddingList, EmbeddingsBody, create_embeddings
from headrace.services.rest.openai_fields import Body
from headrace.services.rest.openai_models import ModelEntry, ModelList, get_model, list_models
from headrace.services.rest.openai_responses import create_response
from headrace.services.rest.responses_answer import ResponseObject
from headrace.services.rest.responses_fields import ResponsesBody
from headrace.services.rest.sidecar import Exchange
from headrace.services.rest.tgi_fields import GenerateBody, PathBody, StreamBody, TokenizeBody
from headrace.services.rest.tgi_generate import AnyBody, generate, generate_either, generate_stream, invoke
from headrace.services.rest.tgi_info import (
    ChatTokens,
    ChatTokensBody,
    Info,
    SimpleToken,
    get_info,
    tokenize,
    tokenize_chat,
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a protocol writes its errors."""

    name: str
    write_error: Callable[[HeadraceError, Mapping[str, str]], Response]
    error_shape: type
    statuses: Mapping[int, str]
    """The statuses of its errors, and the reasons of the contract behind each."""


_STATUSES = statuses_of(lambda words: words.status)
_TGI_STATUSES = statuses_of(lambda words: words.tgi_status)

OPENAI = Dialect("OpenAI", openai_answer.error_response, openai_answer.ErrorBody, _STATUSES)
ANTHROPIC = Dialect("Anthropic", anthropic_answer.error_response, anthropic_answer.AnthropicError, _STATUSES)
TGI = Dialect("TGI", tgi_answer.error_response, tgi_answer.TgiError, _TGI_STATUSES)

RESPONSES = replace(OPENAI, write_error=partial(openai_answer.error_response, names=responses_fields.FIELD_NAMES))
"""OpenAI's where fields have the names that they have in responses."""
TGI_CHAT = replace(TGI, write_error=partial(tgi_answer.error_response, names=openai_fields.FIELD_NAMES))
"""TGI's where the body is a chat of OpenAI's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A method of a path."""

    method: str
    path: str
    answer: Callable[[Request, Exchange], Awaitable[Response]]
    dialect: Dialect = OPENAI
    body: type[Body] | None = None
    result: object = None
    """Type of the JSON that is returned; None returns no body."""
    streams: bool = False
    """Whether the answer may be a stream of events."""


ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/v1/chat/completions",
        answer=create_chat_completion,
        body=ChatBody,
        result=ChatCompletion,
        streams=True,
    ),
    Endpoint(
        method="POST",
        path="/v1/completions",
        answer=create_completion,
        body=CompletionBody,
        result=TextCompletion,
        streams=True,
    ),
    Endpoint(
        method="POST",
        path="/v1/responses",
        answer=create_response,
        dialect=RESPONSES,
        body=ResponsesBody,
        result=ResponseObject,
        streams=True,
    ),
    Endpoint(method="POST", path="/v1/embeddings", answer=create_embeddings, body=EmbeddingsBody, result=EmbeddingList),
    Endpoint(
        method="POST",
        path="/v1/messages",
        answer=create_message,
        dialect=ANTHROPIC,
        body=MessagesBody,
        result=anthropic_answer.AnthropicAnswer,
        streams=True,
    ),
    Endpoint(
        method="POST",
        path="/v1/messages/count_tokens",
        answer=count_tokens,
        dialect=ANTHROPIC,
        body=PromptBody,
        result=anthropic_answer.TokenCount,
    ),
    Endpoint(method="GET", path="/v1/models", answer=list_models, result=ModelList),
    Endpoint(method="GET", path="/v1/models/{model:path}", answer=get_model, result=ModelEntry),
    Endpoint(method="POST", path="/generate", answer=generate, dialect=TGI, body=PathBody, result=tgi_answer.Generated),
    Endpoint(
        method="POST", path="/generate_stream", answer=generate_stream, dialect=TGI, body=StreamBody, streams=True
    ),
    Endpoint(
        method="POST",
        path="/",
        answer=generate_either,
        dialect=TGI,
        body=GenerateBody,
        result=list[tgi_answer.Generated],
        streams=True,
    ),
    Endpoint(method="POST", path="/invocations", answer=invoke, dialect=TGI, body=AnyBody, result=object, streams=True),
    Endpoint(
        method="POST", path="/tokenize", answer=tokenize, dialect=TGI, body=TokenizeBody, result=list[SimpleToken]
    ),
    Endpoint(
        method="POST",
        path="/chat_tokenize",
        answer=tokenize_chat,
        dialect=TGI_CHAT,
        body=ChatTokensBody,
        result=ChatTokens,
    ),
    Endpoint(method="GET", path="/info", answer=get_info, dialect=TGI, result=Info),
    Endpoint(method="GET", path="/health", answer=get_health, dialect=TGI),
    Endpoint(method="GET", path="/ping", answer=get_health, dialect=TGI),
    Endpoint(method="GET", path="/", answer=get_health, dialect=TGI),
)
