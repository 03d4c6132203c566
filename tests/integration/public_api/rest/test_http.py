"""What is the same in all protocols: bodies, paths, health, and an end of the router."""

from typing import Any

import pytest


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"", {}, 400),
        (b"\xff\xfe", {}, 400),
        (b"[]", {}, 400),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b"{}", {"content-encoding": "gzip"}, 415),
        (b"{" + b" " * 300_000, {}, 413),
    ],
)
async def test_a_body_that_is_none(rest: Any, content: bytes, headers: dict[str, str], status: int) -> None:
    headers = {"content-type": "application/json"} | headers
    response = await rest.http.post("/v1/completions", content=content, headers=headers)
    assert response.status_code == status
    assert response.json()["error"]["message"]


async def test_a_chunked_body_is_bounded(rest: Any) -> None:
    async def chunks() -> Any:
        for _ in range(30):
            yield b" " * 10_000

    response = await rest.http.post("/v1/completions", content=chunks(), headers={"content-type": "application/json"})
    assert response.status_code == 413


async def test_paths_and_methods_that_are_not_there(rest: Any) -> None:
    missing = await rest.http.get("/v2/nothing")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "invalid_request_error")
    wrong = await rest.http.get("/v1/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    both = await rest.http.delete("/")
    assert (both.status_code, set(both.headers["allow"].split(", "))) == (405, {"GET", "HEAD", "POST"})
    assert (await rest.http.head("/")).status_code == 200


async def test_health_is_the_routers(rest: Any) -> None:
    assert (await rest.http.get("/health")).status_code == 200
    assert (await rest.http.get("/ping")).status_code == 200
    await rest.router.app.server.set_serving(is_serving=False)
    assert (await rest.http.get("/health")).status_code == 503
    await rest.router.app.server.set_serving(is_serving=True)
    assert (await rest.http.get("/health")).status_code == 200
    rest.sidecar.is_ending.set()
    assert (await rest.http.get("/health")).status_code == 503


async def test_a_router_that_is_gone(rest: Any) -> None:
    await rest.router.app.server.stop()
    assert (await rest.http.get("/health")).status_code == 503
    response = await rest.post("/v1/completions", prompt="x")
    assert response.status_code == 503
