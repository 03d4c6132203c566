"""The page at `/docs`: the OpenAPI document for people, in one piece of HTML that loads nothing from elsewhere."""

from collections.abc import Iterator
from html import escape
from typing import Any

Json = dict[str, Any]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882 }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem }
code { font: 13px/1.5 ui-monospace, monospace; background: var(--soft); padding: 0 .25em; border-radius: 3px }
details { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0; padding: .4rem .8rem }
summary { cursor: pointer } summary b { display: inline-block; min-width: 3.5rem }
table { border-collapse: collapse; width: 100%; margin: .6rem 0 } td, th { text-align: left; vertical-align: top }
td, th { border-top: 1px solid var(--line); padding: .2rem .6rem .2rem 0 }
"""


def docs_page(document: Json) -> bytes:
    """Returns the page."""
    info = document["info"]
    body = [
        f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>",
        f"<p>{escape(info['description'])} As a document for programs: <a href='openapi.json'>openapi.json</a>.</p>",
        *_operations(document),
        "<h2>Types</h2>",
        *(_schema(name, schema) for name, schema in sorted(document["components"]["schemas"].items())),
    ]
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>{''.join(body)}</body></html>"
    )
    return page.encode()


def _operations(document: Json) -> Iterator[str]:
    by_tag: dict[str, list[tuple[str, str, Json]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            by_tag.setdefault(operation["tags"][0], []).append((method.upper(), path, operation))
    for tag, operations in by_tag.items():
        yield f"<h2>{escape(tag)}</h2>"
        for method, path, operation in operations:
            yield _operation(method, path, operation, document["components"]["responses"])


def _operation(method: str, path: str, operation: Json, shared: Json) -> str:
    parts = [f"<details><summary><b>{method}</b> <code>{escape(path)}</code> {escape(operation['summary'])}</summary>"]
    if "description" in operation:
        parts.append(f"<p>{escape(operation['description'])}</p>")
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        parts.append(f"<p>Takes {_type(schema)}.</p>")
    responses = {
        status: shared[given["$ref"].rpartition("/")[2]] if "$ref" in given else given
        for status, given in operation["responses"].items()
    }
    rows = "".join(
        f"<tr><td><code>{status}</code><td>{escape(response['description'])}<td>"
        + ", ".join(
            f"<code>{escape(kind)}</code> {_type(of['schema']) if 'schema' in of else ''}"
            for kind, of in _content(response)
        )
        for status, response in responses.items()
    )
    return "".join([*parts, f"<table><tr><th>Status<th>When<th>Body{rows}</table></details>"])


def _content(response: Json) -> list[tuple[str, Json]]:
    return list(response.get("content", {}).items())


def _schema(name: str, schema: Json) -> str:
    required = set(schema.get("required", ()))
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code>{' (required)' if field in required else ''}<td>{_type(of)}"
        f"<td>{escape(of.get('description', ''))}"
        for field, of in schema.get("properties", {}).items()
    )
    described = escape(schema.get("description", ""))
    table = f"<table><tr><th>Field<th>Type<th>Meaning{rows}</table>" if rows else f"<p>{_type(schema)}</p>"
    return f"<details id='{escape(name)}'><summary><code>{escape(name)}</code> {described}</summary>{table}</details>"


def _type(schema: Json) -> str:
    """Returns a type in a few words, with links to the types that have names."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f"<a href='#{name}'>{name}</a>"
    if "const" in schema:
        return f"<code>{escape(repr(schema['const']))}</code>"
    if "enum" in schema:
        return " | ".join(f"<code>{escape(repr(value))}</code>" for value in schema["enum"])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " | ".join(dict.fromkeys(_type(member) for member in schema[key]))
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return escape(str(kind))
