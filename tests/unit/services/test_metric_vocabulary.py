"""The metrics keep to Prometheus' rules for names, and to ours."""

import re

import pytest

from headrace.services.telemetry.metric import Metric, MetricKind
from headrace.services.telemetry.vocabulary import VOCABULARY

METRICS = {metric.name: metric for metrics in VOCABULARY.values() for metric in metrics}
NAME = re.compile(r"headrace_[a-z]+(_[a-z]+)*")


def name_of(metric: Metric) -> str:
    return metric.name


@pytest.mark.parametrize("metric", METRICS.values(), ids=name_of)
def test_a_metric_is_well_formed(metric: Metric) -> None:
    assert NAME.fullmatch(metric.name)
    assert (metric.kind is MetricKind.COUNTER) == metric.name.endswith("_total")
    assert not metric.name.endswith(("_bucket", "_sum", "_count"))
    assert metric.text.endswith(".")
    assert (metric.kind is MetricKind.HISTOGRAM) == bool(metric.bounds)
    assert list(metric.bounds) == sorted(set(metric.bounds))
    assert "le" not in metric.labels


@pytest.mark.parametrize("process", VOCABULARY)
def test_a_process_tells_each_metric_once_and_two_processes_mean_the_same(process: str) -> None:
    names = [metric.name for metric in VOCABULARY[process]]
    assert len(set(names)) == len(names)
    assert all(METRICS[metric.name] is metric for metric in VOCABULARY[process])
