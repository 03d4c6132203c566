"""What a sidecar tells of the HTTP requests that it answered."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Final

from headrace.contract.histogram import Histogram
from headrace.services.telemetry.call_meter import CALL_BOUNDS_S
from headrace.services.telemetry.metric import Metric, MetricKind, Reading

UNKNOWN_PATH: Final = "unknown"

REQUESTS: Final = Metric(
    name="headrace_http_requests_total",
    kind=MetricKind.COUNTER,
    text="HTTP requests that ended, by endpoint (`unknown` for a path that is none) and status; 499 is a caller who "
    "hung up before there was one.",
    labels=("path", "code"),
)
DURATION: Final = Metric(
    name="headrace_http_request_duration_seconds",
    kind=MetricKind.HISTOGRAM,
    text="From an HTTP request to the end of its answer. Checks of health are left out.",
    labels=("path",),
    bounds=CALL_BOUNDS_S,
)
IN_FLIGHT: Final = Metric(
    name="headrace_http_requests_in_flight",
    kind=MetricKind.GAUGE,
    text="HTTP requests that are being answered.",
)

HTTP_METRICS: Final = (REQUESTS, DURATION, IN_FLIGHT)


class HttpMeter:
    """Counts HTTP requests. Use on the event loop that serves them."""

    def __init__(self) -> None:
        self.in_flight_count = 0
        """Requests that have not ended."""
        self.ended: Final = Counter[tuple[str, str]]()
        """Requests by the path of their endpoint and status."""
        self.duration_s: Final = defaultdict[str, Histogram](lambda: Histogram(CALL_BOUNDS_S))
        """By path."""

    def note_begin(self) -> None:
        """Counts a request in."""
        self.in_flight_count += 1

    def note_end(self, path: str, code: str, duration_s: float, *, is_check: bool) -> None:
        """Counts a request out; `path` is an endpoint's or `UNKNOWN_PATH`."""
        self.in_flight_count -= 1
        self.ended[path, code] += 1
        if not is_check:
            self.duration_s[path].observe(duration_s)


def read_http(meter: HttpMeter) -> Iterator[Reading]:
    """Yields what `HTTP_METRICS` are now."""
    yield Reading(IN_FLIGHT, (), meter.in_flight_count)
    for labels, count in meter.ended.items():
        yield Reading(REQUESTS, labels, count)
    for path, duration_s in meter.duration_s.items():
        yield Reading(DURATION, (path,), duration_s.copy())
