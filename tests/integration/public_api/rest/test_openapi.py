"""The OpenAPI document is true: what the sidecar answers is what it says."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import jsonschema
import pytest

TURNS = [{"role": "user", "content": "Why is the sky blue?"}]
CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/v1/chat/completions", {"messages": TURNS, "max_tokens": 2, "logprobs": True, "top_logprobs": 1}),
    ("POST", "/v1/completions", {"prompt": "Once", "max_tokens": 2, "logprobs": 1, "n": 2}),
    ("POST", "/v1/responses", {"input": TURNS, "max_output_tokens": 2}),
    ("POST", "/v1/embeddings", {"input": ["x"], "pooling": "mean"}),
    ("POST", "/v1/messages", {"model": "", "messages": TURNS, "max_tokens": 2}),
    ("POST", "/v1/messages/count_tokens", {"model": "", "messages": TURNS}),
    ("GET", "/v1/models", {}),
    ("GET", "/v1/models/{model}", {}),
    ("POST", "/generate", {"inputs": "x", "parameters": {"max_new_tokens": 2, "details": True, "top_n_tokens": 2}}),
    ("POST", "/generate_stream", {"inputs": "x", "parameters": {"max_new_tokens": 2}}),
    ("POST", "/", {"inputs": "x", "parameters": {"max_new_tokens": 2}}),
    ("POST", "/invocations", {"inputs": "x", "parameters": {"max_new_tokens": 2}}),
    ("POST", "/tokenize", {"inputs": "x"}),
    ("POST", "/chat_tokenize", {"messages": TURNS}),
    ("GET", "/info", {}),
    ("GET", "/health", {}),
    ("GET", "/ping", {}),
    ("GET", "/", {}),
]


def resolved(document: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in part:
        return part
    found = document
    for key in part["$ref"].removeprefix("#/").split("/"):
        found = found[key]
    return found


def check(document: dict[str, Any], method: str, path: str, response: Any) -> None:
    described = document["paths"][path][method.lower()]["responses"][str(response.status_code)]
    content = resolved(document, described).get("content", {})
    if not content:
        assert response.content == b""
        return
    media = content[response.headers["content-type"].partition(";")[0]]
    if "schema" not in media:
        assert response.text.startswith("data:")
        return
    schema, value = media["schema"], response.json()
    jsonschema.Draft202012Validator(schema | {"components": document["components"]}).validate(value)


async def test_every_answer_and_every_error_is_as_described(rest: Any) -> None:
    document = (await rest.http.get("/openapi.json")).json()
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert {(method, path) for method, path, _ in CALLS} == described
    for method, path, body in CALLS:
        url = path.format(model="test-model")
        response = await rest.http.request(method, url, json=body if method == "POST" else None)
        assert response.status_code == 200, (path, response.text)
        check(document, method, path, response)
        if method == "POST":
            wrong = await rest.http.post(url, json=body | {"colour": "red"})
            assert wrong.status_code in (400, 422)
            check(document, method, path, wrong)
    missing = await rest.http.get("/v1/models/other")
    check(document, "GET", "/v1/models/{model}", missing)


async def test_names_of_operations_are_unique_and_references_lead_somewhere(rest: Any) -> None:
    response = await rest.http.get("/openapi.json")
    document = response.json()
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(names) == len(set(names))
    for reference in set(re.findall(r'"(#/components/[^"]+)"', response.text)):
        resolved(document, {"$ref": reference})


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        for name, value in attrs:
            if name in ("href", "src"):
                self.targets.append(value)
            if name == "id":
                self.ids.add(value)


def external(links: Links) -> Iterator[str]:
    return (target for target in links.targets if not target.startswith("#") and target != "openapi.json")


async def test_the_page_needs_nothing_from_elsewhere(rest: Any) -> None:
    response = await rest.http.get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    links = Links()
    links.feed(response.text)
    assert list(external(links)) == []
    assert {target.removeprefix("#") for target in links.targets if target.startswith("#")} <= links.ids
    for path in ("/v1/chat/completions", "/v1/messages", "/generate_stream"):
        assert path in response.text


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
async def test_what_is_only_read_cannot_be_written(rest: Any, path: str) -> None:
    assert (await rest.http.post(path, json={})).status_code == 405
