"""What the sidecar tells Prometheus of its HTTP requests."""

from functools import partial
from typing import Any

from scrape import scrape

from headrace.services.address import TcpAddress
from headrace.services.telemetry.endpoint import serve_metrics
from headrace.services.telemetry.http_metrics import HTTP_METRICS, read_http

CHAT = "/v1/chat/completions"


async def test_requests_are_counted_by_endpoint_and_status(rest: Any) -> None:
    sources = [partial(read_http, rest.sidecar.meter)]
    async with serve_metrics(TcpAddress("127.0.0.1", 0), HTTP_METRICS, sources) as endpoint:
        assert endpoint is not None
        asked = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "model": "test-model"}
        assert (await rest.post(CHAT, **asked)).status_code == 200
        assert (await rest.post(CHAT, **asked, stream=True)).status_code == 200
        assert (await rest.post(CHAT, **{**asked, "max_tokens": -1})).status_code == 400
        assert (await rest.http.get("/nowhere/at/all")).status_code == 404
        assert (await rest.http.get("/health")).status_code == 200
        told = await scrape(endpoint.address)
    assert told.get("headrace_http_requests_total", path=CHAT, code="200") == 2
    assert told.get("headrace_http_requests_total", path=CHAT, code="400") == 1
    # A path that a caller made up is no label.
    assert told.get("headrace_http_requests_total", path="unknown", code="404") == 1
    assert told.get("headrace_http_request_duration_seconds_count", path=CHAT) == 3
    assert told.get("headrace_http_request_duration_seconds_count", path="/health") == 0
    assert told.get("headrace_http_requests_in_flight") == 0
    documented = {name for metric in HTTP_METRICS for name in metric.series_names}
    assert documented <= told.names
