"""What every process tells of itself: its version, its event loop and the calls that it answered."""

from collections.abc import Iterator
from importlib.metadata import version
from typing import Final

from headrace.services.telemetry.call_meter import CALL_BOUNDS_S, CallMeter
from headrace.services.telemetry.loop_lag import LAG_BOUNDS_S, LoopLagProbe
from headrace.services.telemetry.metric import Metric, MetricKind, Reading

BUILD: Final = Metric(
    name="headrace_build_info",
    kind=MetricKind.GAUGE,
    text="1, with the version of headrace.",
    labels=("version",),
)
LOOP_LAG: Final = Metric(
    name="headrace_event_loop_lag_seconds",
    kind=MetricKind.HISTOGRAM,
    text="How late the event loop ran a timer, four times a second: all calls wait for it.",
    bounds=LAG_BOUNDS_S,
)
CALLS: Final = Metric(
    name="headrace_grpc_calls_total",
    kind=MetricKind.COUNTER,
    text="gRPC calls that ended, by method and status, those that were refused before they became a request included.",
    labels=("method", "code"),
)
CALL_DURATION: Final = Metric(
    name="headrace_grpc_call_duration_seconds",
    kind=MetricKind.HISTOGRAM,
    text="How long gRPC calls took. Health checks, reflection and watches are left out.",
    labels=("method",),
    bounds=CALL_BOUNDS_S,
)

LOOP_METRICS: Final = (BUILD, LOOP_LAG)
"""Of every process."""
CALL_METRICS: Final = (CALLS, CALL_DURATION)
"""Of every process with a gRPC server."""


def read_loop(probe: LoopLagProbe) -> Iterator[Reading]:
    """Yields what `LOOP_METRICS` are now."""
    yield Reading(BUILD, (version("headrace"),), 1)
    yield Reading(LOOP_LAG, (), probe.lag_s.copy())


def read_calls(meter: CallMeter) -> Iterator[Reading]:
    """Yields what `CALL_METRICS` are now."""
    for labels, count in meter.ended.items():
        yield Reading(CALLS, labels, count)
    for method, duration_s in meter.duration_s.items():
        yield Reading(CALL_DURATION, (method,), duration_s.copy())
