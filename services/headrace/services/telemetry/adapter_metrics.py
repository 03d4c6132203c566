"""What a router tells of adapters: how many requests may name, and how often they came and went."""

from collections.abc import Iterator
from typing import Final

from headrace.router.adapter_table import AdapterStats
from headrace.services.telemetry.metric import Metric, MetricKind, Reading

ADAPTERS: Final = Metric(
    name="headrace_adapters",
    kind=MetricKind.GAUGE,
    text="Adapters that requests may name.",
    labels=("model",),
)
LOADS: Final = Metric(
    name="headrace_adapter_loads_total",
    kind=MetricKind.COUNTER,
    text="Adapters that every replica was to load, those that the settings name included. `outcome` is `COMPLETED` or "
    "`FAILED`, then no replica kept it.",
    labels=("model", "outcome"),
)
UNLOADS: Final = Metric(
    name="headrace_adapter_unloads_total",
    kind=MetricKind.COUNTER,
    text="Adapters that were taken from requests to come.",
    labels=("model",),
)

ADAPTER_METRICS: Final = (ADAPTERS, LOADS, UNLOADS)


def read_adapters(stats: AdapterStats, model: str) -> Iterator[Reading]:
    """Yields what `ADAPTER_METRICS` are now."""
    yield Reading(ADAPTERS, (model,), stats.adapter_count)
    yield Reading(LOADS, (model, "COMPLETED"), stats.load_count)
    yield Reading(LOADS, (model, "FAILED"), stats.failed_load_count)
    yield Reading(UNLOADS, (model,), stats.unload_count)
