"""`/v1/models`: what is served, as OpenAI lists it."""

from typing import Literal

from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from headrace.client.operations import Model
from headrace.services.rest import openai_answer as answer
from headrace.services.rest.openai_fields import model_name
from headrace.services.rest.sidecar import Exchange


class ModelEntry(TypedDict):
    """A served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(TypedDict):
    """The served models."""

    object: Literal["list"]
    data: list[ModelEntry]


async def list_models(request: Request, exchange: Exchange) -> Response:
    """Lists the served models."""
    del request
    models = await exchange.link.models(exchange.context)
    listing: ModelList = {"object": "list", "data": [_entry(model, exchange) for model in models]}
    return answer.json_response(listing, exchange.headers())


async def get_model(request: Request, exchange: Exchange) -> Response:
    """Returns one model."""
    model = await exchange.link.model(model_name(request.path_params["model"]), exchange.context)
    return answer.json_response(_entry(model, exchange), exchange.headers())


def _entry(model: Model, exchange: Exchange) -> ModelEntry:
    return {
        "id": model.name,
        "object": "model",
        "created": exchange.sidecar.started_at_s,
        "owned_by": "headrace",
        "max_model_len": model.limits.context_token_count,
    }
