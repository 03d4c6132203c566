"""Whatever a request names, nobody goes there: no image, file, document or schema is fetched."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass
class Bait:
    """A listener on a private address that notes whether anybody connects."""

    address: str = ""
    was_visited: asyncio.Event = field(default_factory=asyncio.Event)


@pytest.fixture
async def bait() -> AsyncIterator[Bait]:
    found = Bait()

    def note(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.was_visited.set()
        writer.close()

    server = await asyncio.start_server(note, "127.0.0.1", 0)
    async with server:
        found.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield found


def requests_for(url: str) -> list[tuple[str, dict[str, Any]]]:
    """Returns bodies of every protocol that name a URL wherever one may be."""

    def chat(*parts: dict[str, Any]) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": [*parts]}], "max_tokens": 2}

    def item(*parts: dict[str, Any]) -> dict[str, Any]:
        return {"input": [{"role": "user", "content": [*parts]}], "max_output_tokens": 2}

    def anthropic(*parts: dict[str, Any]) -> dict[str, Any]:
        return {"model": ""} | chat(*parts)

    image = {"type": "image_url", "image_url": {"url": url}}
    elsewhere = {"type": "url", "url": url}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": elsewhere}]}
    schema = {"type": "object", "properties": {"a": {"$ref": url}}}
    return [
        ("/v1/chat/completions", chat(image)),
        ("/v1/chat/completions", chat(image) | {"stream": True}),
        ("/v1/chat/completions", chat({"type": "file", "file": {"file_url": url}})),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "guided_json": schema}),
        ("/v1/responses", item({"type": "input_image", "image_url": url})),
        ("/v1/responses", item({"type": "input_file", "file_url": url})),
        ("/v1/messages", anthropic({"type": "image", "source": elsewhere})),
        ("/v1/messages", anthropic({"type": "document", "source": elsewhere})),
        ("/v1/messages", anthropic(result)),
        ("/v1/messages/count_tokens", {k: v for k, v in anthropic(result).items() if k != "max_tokens"}),
        ("/invocations", chat(image)),
        ("/chat_tokenize", chat(image)),
    ]


@pytest.mark.parametrize("scheme", ["http", "https", "file"])
async def test_no_url_of_a_body_is_opened(rest: Any, bait: Bait, scheme: str) -> None:
    for path, body in requests_for(f"{scheme}://{bait.address}/picture.png"):
        response = await rest.http.post(path, json=body)
        assert response.status_code in (400, 422), (path, body, response.text)
    # TGI reads Markdown in a text as an image; here it is a text.
    text = f"![]({scheme}://{bait.address}/picture.png)"
    answer = await rest.post("/generate", inputs=text, parameters={"max_new_tokens": 2})
    assert answer.status_code == 200
    assert not bait.was_visited.is_set()


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
BESIDE_TEXT = [{"type": "text", "text": "What is this?"}, IMAGE]
BASE64 = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
OUTPUT = [
    {"role": "user", "content": "x"},
    {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": "https://a/b"}]},
]

IMAGES: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": BESIDE_TEXT}]}, "messages[0].content"),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": [IMAGE]}], "stream": True},
        "messages[1].content",
    ),
    ("/v1/responses", {"input": OUTPUT}, "input[1].content"),
    (
        "/v1/messages",
        {"model": "", "max_tokens": 2, "messages": [{"role": "user", "content": [BASE64]}]},
        "messages[0].content",
    ),
    ("/invocations", {"messages": [{"role": "user", "content": BESIDE_TEXT}]}, "messages[0].content"),
    ("/chat_tokenize", {"messages": [{"role": "user", "content": BESIDE_TEXT}]}, "messages[0].content"),
]


@pytest.mark.parametrize(("path", "body", "field"), IMAGES)
async def test_an_image_is_refused_with_its_place(rest: Any, path: str, body: dict[str, Any], field: str) -> None:
    """Also one that is in the body itself, and before anything is generated."""
    response = await rest.http.post(path, json=body)
    assert response.status_code in (400, 422), response.text
    assert f"{field}: the model takes no images" in response.text
    assert rest.router.stats().step_count == 0


async def test_the_bait_is_noticed(bait: Bait) -> None:
    host, _, port = bait.address.partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.close()
    await asyncio.wait_for(bait.was_visited.wait(), 5)
