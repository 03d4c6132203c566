"""`/v1/embeddings`: vectors of texts or token ids."""

import base64
import struct
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from headrace.client import calls
from headrace.client.options import EmbedOptions
from headrace.contract.errors import InvalidRequest
from headrace.services.rest import openai_answer as answer
from headrace.services.rest.http_request import while_connected
from headrace.services.rest.openai_fields import Body, model_name
from headrace.services.rest.openai_prompts import PromptForms, prompts_of
from headrace.services.rest.sidecar import Exchange


class EmbeddingsBody(Body):
    """A request for the vectors of one or several inputs."""

    input: PromptForms
    """A text, token ids, or a list of either."""
    model: str = ""
    """Name of a served model; empty means the only one."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    """Keeps only this many of a vector's first numbers: for models that were trained so."""
    user: str | None = None

    pooling: Literal["mean", "last"] | None = None
    """How the hidden states of an input become one vector: what the model was trained for. Left out, it is what the
    sidecar was started with."""
    normalize: bool | None = None
    """Whether vectors are scaled to length 1; true by default."""
    truncate_token_count: int | None = None
    """Keeps only this many of each input's first tokens, in place of refusing an input that is too long."""
    add_special_tokens: bool | None = None
    adapter: str | None = None
    """Name of a LoRA adapter."""
    priority: int | None = None
    """In [-10, 10]; more urgent requests leave the queue first."""

    IGNORED = frozenset({"user"})

    def options(self, request_id: str) -> EmbedOptions:
        """Returns what the body asks for."""
        return {
            "model": model_name(self.model),
            "request_id": request_id,
            "dimension_count": self.dimensions,
            "normalize": self.normalize,
            "truncate_token_count": self.truncate_token_count,
            "add_special_tokens": self.add_special_tokens,
            "adapter": self.adapter,
            "priority": self.priority,
        }


class EmbeddingEntry(TypedDict):
    """A vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Numbers, or in base64 little-endian numbers of 32 bits."""


class EmbeddingsUsage(TypedDict):
    """Token counts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(TypedDict):
    """The vectors of all inputs, in their order."""

    object: Literal["list"]
    data: list[EmbeddingEntry]
    model: str
    usage: EmbeddingsUsage


async def create_embeddings(request: Request, exchange: Exchange) -> Response:
    """Turns inputs into vectors."""
    body = await exchange.read(request, EmbeddingsBody)
    pooling = body.pooling or exchange.sidecar.default_pooling
    if pooling is None:
        raise InvalidRequest.of(
            "pooling",
            "must be 'mean' or 'last', whichever the model was trained for; the operator can choose it for all "
            "requests with --embedding-pooling",
        )
    call = calls.embed(prompts_of(body.input), pooling, body.options(exchange.router_request_id()))
    found = await while_connected(request, exchange.link.unary(call, exchange.context))
    listing: EmbeddingList = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _encode(entry.values, body.encoding_format)}
            for index, entry in enumerate(found.embeddings)
        ],
        "model": found.model,
        "usage": {"prompt_tokens": found.token_count, "total_tokens": found.token_count},
    }
    return answer.json_response(listing, exchange.headers(body))


def _encode(values: tuple[float, ...], encoding_format: str) -> list[float] | str:
    if encoding_format == "base64":
        return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
    return list(values)
