"""What a router tells of requests: how many wait and run, how they end, how long they take."""

from collections.abc import Iterator
from typing import Final

from headrace.router.pipeline import Pipeline
from headrace.router.request_meter import LENGTH_BOUNDS, PREPARE_BOUNDS_S, REQUEST_BOUNDS_S
from headrace.router.step_profile import GAP_BOUNDS_S
from headrace.services.telemetry.metric import Metric, MetricKind, Reading

QUEUE_SEQUENCES: Final = Metric(
    name="headrace_queue_sequences",
    kind=MetricKind.GAUGE,
    text="Completions and embedding inputs between the arrival of their request and their first step.",
    labels=("model",),
)
QUEUE_TOKENS: Final = Metric(
    name="headrace_queue_tokens",
    kind=MetricKind.GAUGE,
    text="Prompt tokens of the requests that wait.",
    labels=("model",),
)
IN_FLIGHT: Final = Metric(
    name="headrace_requests_in_flight",
    kind=MetricKind.GAUGE,
    text="Requests between their arrival and their end.",
    labels=("model",),
)
ORPHANS: Final = Metric(
    name="headrace_requests_orphaned",
    kind=MetricKind.GAUGE,
    text="Requests that lost their replica and wait for another.",
    labels=("model",),
)
REQUESTS: Final = Metric(
    name="headrace_requests_total",
    kind=MetricKind.COUNTER,
    text="Requests that ended. `kind` is `generate` or `embed`. `outcome` is `COMPLETED`, `CANCELLED` (by the caller, "
    "an abort or the end of a drain) or the reason of the error, such as `QUEUE_FULL` or `DEADLINE_EXCEEDED`.",
    labels=("model", "tenant", "kind", "outcome"),
)
COMPLETIONS: Final = Metric(
    name="headrace_completions_total",
    kind=MetricKind.COUNTER,
    text="Completions that ended normally, by why they did.",
    labels=("model", "finish_reason"),
)
PROMPT_TOKENS: Final = Metric(
    name="headrace_prompt_tokens_total",
    kind=MetricKind.COUNTER,
    text="Prompt tokens of requests, counted when they end. Those of requests that the queue had no room for "
    "are among them.",
    labels=("model", "tenant"),
)
GENERATED_TOKENS: Final = Metric(
    name="headrace_generated_tokens_total",
    kind=MetricKind.COUNTER,
    text="Generated tokens of requests, counted when they end.",
    labels=("model", "tenant"),
)
REPLAYS: Final = Metric(
    name="headrace_replays_total",
    kind=MetricKind.COUNTER,
    text="How often a request went on after its replica was lost.",
    labels=("model",),
)
DURATION: Final = Metric(
    name="headrace_request_duration_seconds",
    kind=MetricKind.HISTOGRAM,
    text="From the arrival of a request to its end, however it ended.",
    labels=("model", "kind"),
    bounds=REQUEST_BOUNDS_S,
)
TOKEN_MEAN: Final = Metric(
    name="headrace_request_token_mean_seconds",
    kind=MetricKind.HISTOGRAM,
    text="The mean time between the tokens of a request with one completion of two or more tokens.",
    labels=("model",),
    bounds=GAP_BOUNDS_S,
)
PROMPT_LENGTH: Final = Metric(
    name="headrace_request_prompt_tokens",
    kind=MetricKind.HISTOGRAM,
    text="Prompt tokens of a request.",
    labels=("model",),
    bounds=LENGTH_BOUNDS,
)
GENERATED_LENGTH: Final = Metric(
    name="headrace_request_generated_tokens",
    kind=MetricKind.HISTOGRAM,
    text="Generated tokens of a request, over all its completions.",
    labels=("model",),
    bounds=LENGTH_BOUNDS,
)
TOKENIZE: Final = Metric(
    name="headrace_tokenize_seconds",
    kind=MetricKind.HISTOGRAM,
    text="From a prompt to its token ids, the wait for a thread included.",
    labels=("model",),
    bounds=PREPARE_BOUNDS_S,
)
GRAMMAR: Final = Metric(
    name="headrace_grammar_compile_seconds",
    kind=MetricKind.HISTOGRAM,
    text="From a constraint to its grammar, the wait for those before it included. A constraint that is known counts, "
    "too, and takes almost nothing.",
    labels=("model",),
    bounds=PREPARE_BOUNDS_S,
)

REQUEST_METRICS: Final = (
    QUEUE_SEQUENCES,
    QUEUE_TOKENS,
    IN_FLIGHT,
    ORPHANS,
    REQUESTS,
    COMPLETIONS,
    PROMPT_TOKENS,
    GENERATED_TOKENS,
    REPLAYS,
    DURATION,
    TOKEN_MEAN,
    PROMPT_LENGTH,
    GENERATED_LENGTH,
    TOKENIZE,
    GRAMMAR,
)


def read_requests(pipeline: Pipeline) -> Iterator[Reading]:
    """Yields what `REQUEST_METRICS` are now."""
    name, meter = pipeline.model.card.name, pipeline.desk.meter
    model = (name,)
    yield Reading(QUEUE_SEQUENCES, model, pipeline.admission.waiting_count)
    yield Reading(QUEUE_TOKENS, model, pipeline.admission.waiting_token_count)
    yield Reading(IN_FLIGHT, model, pipeline.desk.request_count)
    yield Reading(ORPHANS, model, pipeline.replicas.orphan_count)
    yield Reading(REPLAYS, model, pipeline.replicas.replay_count)
    for (tenant, kind, outcome), count in meter.ended.items():
        yield Reading(REQUESTS, (name, tenant, kind.value, outcome), count)
    for reason, count in meter.completion_count.items():
        yield Reading(COMPLETIONS, (name, reason.value), count)
    for tenant, count in meter.prompt_token_count.items():
        yield Reading(PROMPT_TOKENS, (name, tenant), count)
    for tenant, count in meter.generated_token_count.items():
        yield Reading(GENERATED_TOKENS, (name, tenant), count)
    for kind, duration_s in meter.duration_s.items():
        yield Reading(DURATION, (name, kind.value), duration_s.copy())
    yield Reading(TOKEN_MEAN, model, meter.token_mean_s.copy())
    yield Reading(PROMPT_LENGTH, model, meter.prompt_length.copy())
    yield Reading(GENERATED_LENGTH, model, meter.generated_length.copy())
    yield Reading(TOKENIZE, model, meter.tokenize_s.copy())
    yield Reading(GRAMMAR, model, meter.grammar_s.copy())
