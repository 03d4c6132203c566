"""A metric as the vocabulary describes it, and its values on the way from an event loop to a scrape."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family

from headrace.contract.histogram import Histogram


class MetricKind(StrEnum):
    """How Prometheus understands a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    UNTYPED = "untyped"
    """A counter under a name that Prometheus would not give to one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric of the vocabulary."""

    name: str
    """As it is exported; of a histogram without `_bucket`, `_sum` and `_count`."""
    kind: MetricKind
    text: str
    """What it counts, in one sentence."""
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets."""

    @property
    def series_names(self) -> tuple[str, ...]:
        """The names under which its values are found."""
        if self.kind is MetricKind.HISTOGRAM:
            return (f"{self.name}_bucket", f"{self.name}_sum", f"{self.name}_count")
        return (self.name,)


class Reading(NamedTuple):
    """The value of a metric for one set of labels."""

    metric: Metric
    labels: tuple[str, ...]
    """As many as the metric has, in the same order."""
    value: float | Histogram
    """A histogram is a copy that nobody writes to."""


def families_of(readings: Iterable[Reading]) -> list[Family]:
    """Returns readings as prometheus_client takes them, those of one metric together."""
    families: dict[str, Family] = {}
    for metric, labels, value in readings:
        family = families.get(metric.name)
        if family is None:
            family = families[metric.name] = empty_family(metric)
        _add(family, metric, labels, value)
    return list(families.values())


def empty_family(metric: Metric) -> Family:
    """Returns a metric without values."""
    match metric.kind:
        case MetricKind.COUNTER:
            return CounterMetricFamily(metric.name, metric.text, labels=metric.labels)
        case MetricKind.GAUGE:
            return GaugeMetricFamily(metric.name, metric.text, labels=metric.labels)
        case MetricKind.HISTOGRAM:
            return HistogramMetricFamily(metric.name, metric.text, labels=metric.labels)
        case MetricKind.UNTYPED:
            return Family(metric.name, metric.text, "unknown")


def _add(family: Family, metric: Metric, labels: tuple[str, ...], value: float | Histogram) -> None:
    assert len(labels) == len(metric.labels), metric.name
    if isinstance(family, HistogramMetricFamily):
        assert isinstance(value, Histogram), metric.name
        buckets = [(_bound_text(bound), float(count)) for bound, count in value.cumulative()]
        family.add_metric(labels, buckets, sum_value=value.sum)
        return
    assert not isinstance(value, Histogram), metric.name
    if isinstance(family, CounterMetricFamily | GaugeMetricFamily):
        family.add_metric(labels, value)
    else:
        family.add_sample(metric.name, dict(zip(metric.labels, labels, strict=True)), value)


def _bound_text(bound: float) -> str:
    return "+Inf" if bound == inf else str(float(bound))
