"""`/v1/models`: what is served, as OpenAI lists it: models, and adapters by names that stand where a model's do."""

from typing import Literal, NotRequired

from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from headrace.client.operations import Adapter, Model
from headrace.contract.errors import ModelNotFound
from headrace.services.rest import openai_answer as answer
from headrace.services.rest.openai_fields import model_name
from headrace.services.rest.sidecar import Exchange


class ModelEntry(TypedDict):
    """A served model, or one with an adapter."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    parent: NotRequired[str]
    """The model that an adapter is for."""


class ModelList(TypedDict):
    """The served models."""

    object: Literal["list"]
    data: list[ModelEntry]


async def list_models(request: Request, exchange: Exchange) -> Response:
    """Lists the served models, each with its adapters after it."""
    del request
    entries: list[ModelEntry] = []
    for model in await exchange.link.models(exchange.context):
        entries.append(_entry(model, exchange))
        adapters = await exchange.link.adapters(model.name, exchange.context)
        entries += [_adapter_entry(adapter, model, exchange) for adapter in adapters]
    listing: ModelList = {"object": "list", "data": entries}
    return answer.json_response(listing, exchange.headers())


async def get_model(request: Request, exchange: Exchange) -> Response:
    """Returns one model, or one with an adapter."""
    name = model_name(request.path_params["model"])
    try:
        entry = _entry(await exchange.link.model(name, exchange.context), exchange)
    except ModelNotFound:
        adapters = {adapter.name: adapter for adapter in await exchange.link.adapters("", exchange.context)}
        if name not in adapters:
            raise
        entry = _adapter_entry(adapters[name], await exchange.link.model("", exchange.context), exchange)
    return answer.json_response(entry, exchange.headers())


def _entry(model: Model, exchange: Exchange) -> ModelEntry:
    return {
        "id": model.name,
        "object": "model",
        "created": exchange.sidecar.started_at_s,
        "owned_by": "headrace",
        "max_model_len": model.limits.context_token_count,
    }


def _adapter_entry(adapter: Adapter, model: Model, exchange: Exchange) -> ModelEntry:
    return {**_entry(model, exchange), "id": adapter.name, "parent": model.name}
