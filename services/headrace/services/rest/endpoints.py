"""Every endpoint: its path, the protocol it speaks, who answers it, and the shapes of what it takes and returns."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from headrace.contract.errors import HeadraceError
from headrace.services.rest import openai_answer
from headrace.services.rest.health import get_health
from headrace.services.rest.openai_chat import ChatBody, ChatCompletion, create_chat_completion
from headrace.services.rest.openai_completions import CompletionBody, TextCompletion, create_completion
from headrace.services.rest.openai_fields import Body
from headrace.services.rest.openai_models import ModelEntry, ModelList, get_model, list_models
from headrace.services.rest.sidecar import Exchange


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a protocol writes its errors."""

    name: str
    write_error: Callable[[HeadraceError, Mapping[str, str]], Response]
    error_shape: type


OPENAI = Dialect("OpenAI", openai_answer.error_response, openai_answer.ErrorBody)


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
    Endpoint(method="GET", path="/v1/models", answer=list_models, result=ModelList),
    Endpoint(method="GET", path="/v1/models/{model:path}", answer=get_model, result=ModelEntry),
    Endpoint(method="GET", path="/health", answer=get_health),
    Endpoint(method="GET", path="/ping", answer=get_health),
)
