"""A real Prometheus scrapes a router, understands it, and answers what the dashboard asks.

`make test-prometheus` fetches Debian's; docs/metrics.md says when that was done last.
"""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from dashboard import NAME, queries

from headrace.services.address import TcpAddress
from headrace.services.telemetry.endpoint import serve_metrics
from headrace.services.telemetry.router_metrics import ROUTER_METRICS, read_router
from headrace.services.telemetry.vocabulary import VOCABULARY
from headrace.v1 import generate_service_pb2 as pb

ROOT = Path(__file__).resolve().parents[3]
FETCHED = ROOT / "build" / "prometheus" / "usr" / "bin" / "prometheus"
PROMETHEUS = str(FETCHED) if FETCHED.exists() else shutil.which("prometheus")

pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="no Prometheus here; make test-prometheus fetches it")

CONFIG = """
global: { scrape_interval: 200ms, scrape_timeout: 200ms }
scrape_configs:
  - job_name: headrace
    static_configs: [{ targets: ["%s"] }]
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@asynccontextmanager
async def prometheus_of(target: str, folder: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """Runs Prometheus until it has scraped the target at least twice."""
    assert PROMETHEUS is not None
    config = folder / "prometheus.yml"
    config.write_text(CONFIG % target)
    address = f"127.0.0.1:{free_port()}"
    flags = (f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}")
    with (folder / "log").open("w") as log:
        process = await asyncio.create_subprocess_exec(PROMETHEUS, *flags, stdout=log, stderr=log)
    try:
        async with httpx2.AsyncClient(base_url=f"http://{address}") as http:
            async with asyncio.timeout(30):
                while not await has_scraped(http):
                    assert process.returncode is None, (folder / "log").read_text()
                    await asyncio.sleep(0.1)
            yield http
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def has_scraped(http: httpx2.AsyncClient) -> bool:
    try:
        found = await ask(http, "sum_over_time(up[1m])")
    except (httpx2.HTTPError, AssertionError):
        return False
    return bool(found) and float(found[0]["value"][1]) >= 3


async def ask(http: httpx2.AsyncClient, query: str) -> list[Any]:
    response = await http.get("/api/v1/query", params={"query": query})
    # Until it has read what it stored, it answers 503 in plain text.
    response.raise_for_status()
    answer = response.json()
    assert answer["status"] == "success", answer
    result: list[Any] = answer["data"]["result"]
    return result


async def test_it_understands_the_endpoint_and_the_dashboard(
    deploy: Callable[..., AbstractAsyncContextManager[Any]], tmp_path: Path
) -> None:
    async with deploy() as server:
        sources = [partial(read_router, server.app.pipeline, server.app.server)]
        async with serve_metrics(TcpAddress("127.0.0.1", 0), ROUTER_METRICS, sources) as endpoint:
            assert endpoint is not None
            request = pb.GenerateRequest(text="Hello", stopping=pb.StoppingRules(max_new_token_count=7))
            await server.generate.Generate(request)
            async with prometheus_of(endpoint.address, tmp_path) as http:
                (target,) = (await http.get("/api/v1/targets")).json()["data"]["activeTargets"]
                assert (target["health"], target["lastError"]) == ("up", "")
                await server.generate.Generate(request)
                async with asyncio.timeout(10):
                    while (await ask(http, "headrace_generated_tokens_total"))[0]["value"][1] != "14":  # noqa: ASYNC110
                        await asyncio.sleep(0.1)
                metadata = (await http.get("/api/v1/metadata")).json()["data"]
                for metric in VOCABULARY["router"]:
                    # Asked in OpenMetrics, where a counter's ending is not part of its name.
                    assert metadata[metric.name.removesuffix("_total")][0]["type"] == metric.kind.value, metric.name
                told = {name for metric in VOCABULARY["router"] for name in metric.series_names}
                for title, of_panel in queries().items():
                    for query in of_panel:
                        found = await ask(http, query)
                        # A sidecar's are asked for in vain here, and nothing has failed.
                        if set(NAME.findall(query)) <= told and "outcome!~" not in query:
                            assert found, f"{title}: {query}"
