"""The OpenAPI document of the sidecar, made of the types that check bodies and shape answers."""

import re
from collections.abc import Iterable
from typing import Any

from pydantic import TypeAdapter

from headrace.services.rest.endpoints import ENDPOINTS, Dialect, Endpoint
from headrace.services.rest.event_stream import MEDIA_TYPE
from headrace.services.rest.http_request import IGNORED_HEADER, REQUEST_ID_HEADER, TIMEOUT_HEADER

Json = dict[str, Any]

_REFERENCE = "#/components/schemas/{model}"

_PARAMETERS: list[Json] = [
    {
        "name": REQUEST_ID_HEADER,
        "in": "header",
        "required": False,
        "description": "Finds the request in logs; returned, and made if it is missing.",
        "schema": {"type": "string"},
    },
    {
        "name": TIMEOUT_HEADER,
        "in": "header",
        "required": False,
        "description": "Seconds after which the request ends with an error, waiting included.",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    },
]

_HEADERS: Json = {
    REQUEST_ID_HEADER: {"description": "The request's id.", "schema": {"type": "string"}},
    IGNORED_HEADER: {
        "description": "Fields of the request that were understood and have no effect here.",
        "schema": {"type": "string"},
    },
}
_RETRY_HEADER: Json = {
    "Retry-After": {"description": "Seconds after which to come back.", "schema": {"type": "integer", "minimum": 1}}
}
_KEY_HEADER: Json = {
    "WWW-Authenticate": {"description": "What to show: a key, as `Bearer KEY`.", "schema": {"const": "Bearer"}}
}
_ADVICE: dict[int, Json] = {401: _KEY_HEADER, 429: _RETRY_HEADER, 503: _RETRY_HEADER}
_HEADER_REFERENCES: Json = {name: {"$ref": f"#/components/headers/{name}"} for name in _HEADERS}


def openapi_document(version: str) -> Json:
    """Returns the document."""
    types = _types(ENDPOINTS)
    schemas, definitions = TypeAdapter.json_schemas(
        [(name, "validation", TypeAdapter(kind)) for name, kind in types.items()], ref_template=_REFERENCE
    )
    by_type = {name: schemas[name, "validation"] for name in types}
    paths: dict[str, Json] = {}
    for endpoint in ENDPOINTS:
        path = re.sub(r":\w+}", "}", endpoint.path)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, path, by_type)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "headrace",
            "version": version,
            "description": "Generation, embeddings and what is served, in the protocols of OpenAI, Anthropic and Text "
            "Generation Inference. Fields that an operation does not list are refused with their names.",
        },
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "headers": _HEADERS,
            "responses": _refusals(by_type),
        },
    }


def _types(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """Returns every type of the document by a name of its own."""
    found: dict[str, Any] = {}
    for endpoint in endpoints:
        for kind in (endpoint.body, endpoint.result, endpoint.dialect.error_shape):
            if kind is not None:
                found[_name(kind)] = kind
    return found


def _name(kind: object) -> str:
    return kind.__qualname__ if isinstance(kind, type) and not hasattr(kind, "__origin__") else repr(kind)


def _operation(endpoint: Endpoint, path: str, schemas: dict[str, Json]) -> Json:
    summary, _, description = (endpoint.answer.__doc__ or "").strip().partition("\n")
    statuses = sorted(endpoint.dialect.statuses)
    operation: Json = {
        "summary": summary,
        "operationId": "_".join([endpoint.method.lower(), *re.findall(r"\w+", path)]),
        "tags": [endpoint.dialect.name],
        "parameters": [*_path_parameters(path), *(_PARAMETERS if endpoint.body is not None else ())],
        "responses": {"200": _answer(endpoint, schemas)}
        | {
            str(status): {"$ref": f"#/components/responses/{_refusal(endpoint.dialect, status)}"} for status in statuses
        },
    }
    if description.strip():
        operation["description"] = " ".join(description.split())
    if endpoint.body is not None:
        content = {"application/json": {"schema": schemas[_name(endpoint.body)]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _path_parameters(path: str) -> list[Json]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)}", path)
    ]


def _answer(endpoint: Endpoint, schemas: dict[str, Json]) -> Json:
    content: Json = {}
    if endpoint.result is not None:
        content["application/json"] = {"schema": schemas[_name(endpoint.result)]}
    if endpoint.streams:
        # OpenAPI 3.1 has no words for events.
        content[MEDIA_TYPE] = {}
    answer: Json = {"description": "The answer.", "headers": _HEADER_REFERENCES}
    return answer | {"content": content} if content else answer


def _refusals(schemas: dict[str, Json]) -> Json:
    """Returns the errors of every protocol, by the names that `_refusal` gives them."""
    return {
        _refusal(dialect, status): {
            "description": reasons,
            "headers": _HEADER_REFERENCES | _ADVICE.get(status, {}),
            "content": {"application/json": {"schema": schemas[_name(dialect.error_shape)]}},
        }
        for dialect in {endpoint.dialect.name: endpoint.dialect for endpoint in ENDPOINTS}.values()
        for status, reasons in dialect.statuses.items()
    }


def _refusal(dialect: Dialect, status: int) -> str:
    return f"{dialect.name}{status}"
