"""The page at `/ui`: its files, their headers, and the stream of live figures."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import fields
from typing import Any

import httpx2
import orjson
import pytest

from headrace.client.operations import Load, Replica, ReplicaLoad, ReplicaState
from headrace.services.rest.app import build_app
from headrace.services.rest.ui_status import FigureReader


async def figures(response: Any) -> AsyncIterator[Any]:
    async for line in response.aiter_lines():
        if line:
            yield orjson.loads(line.removeprefix("data: "))


async def test_the_page_loads_nothing_from_elsewhere(rest: Any) -> None:
    page = await rest.http.get("/ui")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    links = re.findall(r'(?:src|href)="(ui/[^"]+)"', page.text)
    assert len(links) == 3
    for link in links:
        file = await rest.http.get(f"/{link}")
        assert file.status_code == 200
        assert file.headers["x-content-type-options"] == "nosniff"
        assert "//" not in file.text.replace("http://www.w3.org/2000/svg", "").replace("// ", "")
        for module in re.findall(r'from "\./([^"]+)"', file.text):
            assert (await rest.http.get(f"/ui/{module}")).headers["content-type"].startswith("text/javascript")


async def test_a_file_that_the_browser_has_is_not_sent_again(rest: Any) -> None:
    first = await rest.http.get("/ui/app.js")
    assert first.headers["cache-control"] == "no-cache"
    etag = first.headers["etag"]
    for known in (etag, f'"other", W/{etag}', "*"):
        again = await rest.http.get("/ui/app.js", headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    changed = await rest.http.get("/ui/app.js", headers={"if-none-match": '"other"'})
    assert (changed.status_code, changed.content) == (200, first.content)


async def test_the_figures_are_the_routers(rest: Any) -> None:
    async with asyncio.timeout(10), rest.http.stream("GET", "/ui/status") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        events = figures(response)
        first = await anext(events)
        assert (first["waiting_count"], first["running_count"], first["generated_tokens_per_s"]) == (0, 0, None)
        [replica] = first["replicas"]
        assert (replica["state"], replica["model"], replica["restart_count"]) == ("serving", "test-model", 0)
        assert replica["total_block_count"] > 0
        answer = await rest.post("/v1/completions", prompt="x", max_tokens=20, ignore_eos=True)
        assert answer.json()["usage"]["completion_tokens"] == 20
        second = await anext(events)
        assert 10 < second["generated_tokens_per_s"] < 40  # 20 tokens in about a second
        # The end of the process does not wait for pages that are open.
        rest.sidecar.is_ending.set()
        assert [event async for event in events] == []


async def test_hanging_up_ends_the_routers_stream(rest: Any) -> None:
    async with rest.http.stream("GET", "/ui/status") as response:
        await anext(figures(response))
        assert len(rest.sidecar.link._channel._calls) == 1
    async with asyncio.timeout(5):
        while rest.sidecar.link._channel._calls:  # noqa: ASYNC110  # the server tells nobody that it noticed
            await asyncio.sleep(0.01)


async def test_a_router_that_is_gone_is_a_status_with_words(rest: Any) -> None:
    await rest.router.app.server.stop()
    response = await rest.http.get("/ui/status")
    assert response.status_code == 503
    assert response.json()["error"]["message"]


async def test_it_can_be_left_out(rest: Any) -> None:
    transport = httpx2.ASGITransport(app=build_app(rest.sidecar, with_ui=False))
    async with httpx2.AsyncClient(transport=transport, base_url="http://without") as http:
        assert (await http.get("/v1/models")).status_code == 200
        for path in ("/ui", "/ui/", "/ui/status", "/ui/app.js"):
            assert (await http.get(path)).status_code == 404, path


def load_of(generated_count: int) -> Load:
    names = [field.name for field in fields(ReplicaLoad) if field.name not in {"generated_token_count", "profile"}]
    counts = dict.fromkeys(names, 0)
    replica = Replica(
        id="r0",
        addresses=("unix:x",),
        model="m",
        state=ReplicaState.SERVING,
        detail="",
        load=ReplicaLoad(**counts, generated_token_count=generated_count),
        restart_count=0,
    )
    return Load(
        waiting_count=0,
        waiting_token_count=0,
        waiting_limit=1,
        running_count=0,
        expected_wait_s=0.0,
        replicas=(replica,),
    )


def test_a_rate_needs_two_reports_of_the_same_life() -> None:
    reader = FigureReader()
    readings = [(100.0, 50), (102.0, 60), (103.0, 5), (103.5, 6)]
    rates = [reader.read(load_of(count), now_s)["generated_tokens_per_s"] for now_s, count in readings]
    assert rates == [None, pytest.approx(5.0), None, pytest.approx(2.0)]
