"""Every metric of every process, for the page that documents them and for tests."""

from collections.abc import Mapping
from typing import Final

from headrace.services.telemetry.http_metrics import HTTP_METRICS
from headrace.services.telemetry.metric import Metric
from headrace.services.telemetry.process_metrics import CALL_METRICS, LOOP_METRICS
from headrace.services.telemetry.router_metrics import ROUTER_METRICS
from headrace.services.telemetry.shard_metrics import SHARD_METRICS

VOCABULARY: Final[Mapping[str, tuple[Metric, ...]]] = {
    "router": (*LOOP_METRICS, *ROUTER_METRICS),
    "shard": (*LOOP_METRICS, *SHARD_METRICS, *CALL_METRICS),
    "rest": (*LOOP_METRICS, *HTTP_METRICS),
}
"""By process."""
