"""The same numbers under the names that Text Generation Inference gave them, for dashboards that know those."""

from collections.abc import Iterable, Iterator
from typing import Final

from headrace.contract.errors import FeatureUnsupported, InvalidRequest, ModelNotFound, QueueFull, QuotaExceeded
from headrace.contract.histogram import Histogram
from headrace.router.pipeline import Pipeline
from headrace.router.request_meter import (
    CANCELLED,
    COMPLETED,
    LENGTH_BOUNDS,
    PREPARE_BOUNDS_S,
    REQUEST_BOUNDS_S,
    RequestKind,
    RequestMeter,
)
from headrace.router.step_profile import GAP_BOUNDS_S, ROW_BOUNDS, WAIT_BOUNDS_S
from headrace.services.telemetry.metric import Metric, MetricKind, Reading


def _counter(name: str, text: str, *labels: str) -> Metric:
    # Its names for counters do not end in `_total`, so Prometheus may not be told that they are counters.
    return Metric(name=name, kind=MetricKind.UNTYPED, text=text, labels=labels)


def _gauge(name: str, text: str) -> Metric:
    return Metric(name=name, kind=MetricKind.GAUGE, text=text)


def _histogram(name: str, text: str, bounds: tuple[float, ...]) -> Metric:
    return Metric(name=name, kind=MetricKind.HISTOGRAM, text=text, bounds=bounds)


REQUEST_COUNT: Final = _counter("tgi_request_count", "`headrace_requests_total` of kind `generate`.")
REQUEST_SUCCESS: Final = _counter("tgi_request_success", "Of these, outcome `COMPLETED`.")
REQUEST_FAILURE: Final = _counter(
    "tgi_request_failure",
    "Of these, the others: `validation` is a request that cannot run, `overloaded` one that was turned away, `dropped` "
    "one that its caller took back, `generation` any other.",
    "err",
)
REQUEST_DURATION: Final = _histogram(
    "tgi_request_duration", "`headrace_request_duration_seconds` of kind `generate`.", REQUEST_BOUNDS_S
)
VALIDATION_DURATION: Final = _histogram(
    "tgi_request_validation_duration", "`headrace_tokenize_seconds`.", PREPARE_BOUNDS_S
)
QUEUE_DURATION: Final = _histogram(
    "tgi_request_queue_duration", "`headrace_queue_wait_seconds` over all replicas.", WAIT_BOUNDS_S
)
INFERENCE_DURATION: Final = _histogram(
    "tgi_request_inference_duration", "From the first step of a request to its last token.", REQUEST_BOUNDS_S
)
TOKEN_MEAN: Final = _histogram(
    "tgi_request_mean_time_per_token_duration", "`headrace_request_token_mean_seconds`.", GAP_BOUNDS_S
)
GENERATED_TOKENS: Final = _histogram(
    "tgi_request_generated_tokens", "`headrace_request_generated_tokens`.", LENGTH_BOUNDS
)
INPUT_LENGTH: Final = _histogram("tgi_request_input_length", "`headrace_request_prompt_tokens`.", LENGTH_BOUNDS)
MAX_NEW_TOKENS: Final = _histogram(
    "tgi_request_max_new_tokens", "The most tokens that a completion may have.", LENGTH_BOUNDS
)
QUEUE_SIZE: Final = _gauge("tgi_queue_size", "`headrace_queue_sequences`.")
BATCH_SIZE: Final = _gauge("tgi_batch_current_size", "`headrace_running_sequences` over all replicas.")
BATCH_TOKENS: Final = _gauge(
    "tgi_batch_current_max_tokens", "Tokens that the KV blocks in use have room for, over all replicas."
)
NEXT_SIZE: Final = _histogram("tgi_batch_next_size", "`headrace_step_rows` over all replicas.", ROW_BOUNDS)

TGI_METRICS: Final = (
    REQUEST_COUNT,
    REQUEST_SUCCESS,
    REQUEST_FAILURE,
    REQUEST_DURATION,
    VALIDATION_DURATION,
    QUEUE_DURATION,
    INFERENCE_DURATION,
    TOKEN_MEAN,
    GENERATED_TOKENS,
    INPUT_LENGTH,
    MAX_NEW_TOKENS,
    QUEUE_SIZE,
    BATCH_SIZE,
    BATCH_TOKENS,
    NEXT_SIZE,
)

_FAILURES: Final = {
    CANCELLED: "dropped",
    QueueFull.reason: "overloaded",
    QuotaExceeded.reason: "overloaded",
    InvalidRequest.reason: "validation",
    FeatureUnsupported.reason: "validation",
    ModelNotFound.reason: "validation",
}


def read_tgi(pipeline: Pipeline) -> Iterator[Reading]:
    """Yields what `TGI_METRICS` are now."""
    meter = pipeline.desk.meter
    yield from _read_ends(meter)
    yield Reading(REQUEST_DURATION, (), meter.duration_s[RequestKind.GENERATE].copy())
    yield Reading(VALIDATION_DURATION, (), meter.tokenize_s.copy())
    yield Reading(INFERENCE_DURATION, (), meter.running_s.copy())
    yield Reading(TOKEN_MEAN, (), meter.token_mean_s.copy())
    yield Reading(GENERATED_TOKENS, (), meter.generated_length.copy())
    yield Reading(INPUT_LENGTH, (), meter.prompt_length.copy())
    yield Reading(MAX_NEW_TOKENS, (), meter.asked_length.copy())
    yield Reading(QUEUE_SIZE, (), pipeline.admission.waiting_count)
    yield from _read_replicas(pipeline)


def _read_ends(meter: RequestMeter) -> Iterator[Reading]:
    failures = dict.fromkeys(("validation", "overloaded", "dropped", "generation"), 0)
    success_count = 0
    for (_, kind, outcome), count in meter.ended.items():
        if kind is not RequestKind.GENERATE:
            continue
        if outcome == COMPLETED:
            success_count += count
        else:
            failures[_FAILURES.get(outcome, "generation")] += count
    yield Reading(REQUEST_COUNT, (), success_count + sum(failures.values()))
    yield Reading(REQUEST_SUCCESS, (), success_count)
    for cause, count in failures.items():
        yield Reading(REQUEST_FAILURE, (cause,), count)


def _read_replicas(pipeline: Pipeline) -> Iterator[Reading]:
    replicas = pipeline.replicas.replicas()
    stats = [replica.status().stats for replica in replicas]
    description = pipeline.replicas.description
    block_size = 0 if description is None else description.block_size
    yield Reading(BATCH_SIZE, (), sum(each.running_count for each in stats))
    yield Reading(BATCH_TOKENS, (), sum(each.leased_block_count for each in stats) * block_size)
    yield Reading(QUEUE_DURATION, (), _total(QUEUE_DURATION, (each.profiler.queue_wait_s for each in replicas)))
    yield Reading(NEXT_SIZE, (), _total(NEXT_SIZE, (each.profiler.row_count for each in replicas)))


def _total(metric: Metric, parts: Iterable[Histogram]) -> Histogram:
    return Histogram.total(metric.bounds, parts)
