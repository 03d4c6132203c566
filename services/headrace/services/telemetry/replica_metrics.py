"""What a router tells of its replicas: their steps, their KV blocks, and how quickly tokens come from them."""

from collections.abc import Iterator
from typing import Final

from headrace.contract.histogram import STEP_BOUNDS_S
from headrace.router.replica import Replica, ReplicaState
from headrace.router.replicas import ReplicaSet
from headrace.router.stats import SchedulerStats
from headrace.router.step_profile import GAP_BOUNDS_S, ROW_BOUNDS, TOKEN_BOUNDS, WAIT_BOUNDS_S
from headrace.services.telemetry.metric import Metric, MetricKind, Reading

_LABELS = ("model", "replica")


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(name=name, kind=MetricKind.GAUGE, text=text, labels=(*_LABELS, *labels))


def _counter(name: str, text: str) -> Metric:
    return Metric(name=name, kind=MetricKind.COUNTER, text=text, labels=_LABELS)


def _histogram(name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Metric:
    return Metric(name=name, kind=MetricKind.HISTOGRAM, text=text, labels=(*_LABELS, *labels), bounds=bounds)


UP: Final = _gauge("headrace_replica_up", "1 while the replica takes requests, else 0.")
RESTARTS: Final = _counter("headrace_replica_restarts_total", "How often the replica was lost and came back.")
RUNNING: Final = _gauge("headrace_running_sequences", "Sequences in the batch.")
WAITING: Final = _gauge(
    "headrace_waiting_sequences", "Sequences in the replica's queue, those that gave way to others included."
)
STEPS_IN_FLIGHT: Final = _gauge("headrace_steps_in_flight", "Steps that are unanswered.")
KV_BLOCKS: Final = _gauge(
    "headrace_kv_blocks",
    "KV blocks by `state`: `used` by running sequences, `cached` for prefixes alone and taken when needed, `free`.",
    "state",
)
KV_BLOCK_CAPACITY: Final = _gauge("headrace_kv_block_capacity", "All KV blocks: used, cached and free.")

QUEUE_WAIT: Final = _histogram(
    "headrace_queue_wait_seconds",
    "From the moment that a completion or an input could run to the plan of its first step.",
    WAIT_BOUNDS_S,
)
FIRST_TOKEN: Final = _histogram(
    "headrace_time_to_first_token_seconds",
    "From the arrival of a request to the first token of a completion: tokenizing, the queue and the prompt.",
    WAIT_BOUNDS_S,
)
TOKEN_GAP: Final = _histogram(
    "headrace_inter_token_seconds",
    "From one token of a completion to the next, as the router got them. Tokens that came at once share the time.",
    GAP_BOUNDS_S,
)
STEP_ROWS: Final = _histogram("headrace_step_rows", "Sequences that a step computes.", ROW_BOUNDS)
STEP_TOKENS: Final = _histogram(
    "headrace_step_tokens", "Tokens that a step computes, of prompts and new ones.", TOKEN_BOUNDS
)
STEP_DURATION: Final = _histogram(
    "headrace_step_duration_seconds",
    "Time of a step by `part`: `queued`, `prepare`, `forward` and `sample` as the shard took it, `round_trip` as the "
    "router saw it.",
    STEP_BOUNDS_S,
    "part",
)
BUSY: Final = _counter("headrace_steps_busy_seconds_total", "Time during which one or more steps were unanswered.")

COMPUTED_TOKENS: Final = _counter(
    "headrace_computed_tokens_total", "Tokens planned to be computed, again after a preemption included."
)
SAMPLED_TOKENS: Final = _counter(
    "headrace_sampled_tokens_total", "Tokens that came back, counted step by step, for all that runs there."
)
PREFIX_TOKENS: Final = _counter(
    "headrace_prefix_queried_tokens_total",
    "Prompt tokens of sequences that were admitted: what the prefix cache was asked for.",
)
PREFIX_HITS: Final = _counter("headrace_prefix_hit_tokens_total", "Of these, tokens that the prefix cache held.")
PREEMPTIONS: Final = _counter("headrace_preemptions_total", "Times that a sequence gave way for lack of KV blocks.")
DRAFTED_TOKENS: Final = _counter("headrace_drafted_tokens_total", "Tokens that the engine guessed ahead and computed.")
ACCEPTED_TOKENS: Final = _counter("headrace_accepted_tokens_total", "Of these, tokens that it drew.")

REPLICA_METRICS: Final = (
    UP,
    RESTARTS,
    RUNNING,
    WAITING,
    STEPS_IN_FLIGHT,
    KV_BLOCKS,
    KV_BLOCK_CAPACITY,
    QUEUE_WAIT,
    FIRST_TOKEN,
    TOKEN_GAP,
    STEP_ROWS,
    STEP_TOKENS,
    STEP_DURATION,
    BUSY,
    COMPUTED_TOKENS,
    SAMPLED_TOKENS,
    PREFIX_TOKENS,
    PREFIX_HITS,
    PREEMPTIONS,
    DRAFTED_TOKENS,
    ACCEPTED_TOKENS,
)


def read_replicas(replicas: ReplicaSet, model: str) -> Iterator[Reading]:
    """Yields what `REPLICA_METRICS` are now."""
    for replica in replicas.replicas():
        labels = (model, replica.id)
        status = replica.status()
        yield Reading(UP, labels, int(status.state is ReplicaState.SERVING))
        yield Reading(RESTARTS, labels, status.restart_count)
        yield from _read_stats(status.stats, labels)
        yield from _read_profile(replica, labels)


def _read_stats(stats: SchedulerStats, labels: tuple[str, str]) -> Iterator[Reading]:
    yield Reading(RUNNING, labels, stats.running_count)
    yield Reading(WAITING, labels, stats.waiting_count)
    yield Reading(STEPS_IN_FLIGHT, labels, stats.in_flight_count)
    yield Reading(KV_BLOCKS, (*labels, "used"), stats.leased_block_count)
    yield Reading(KV_BLOCKS, (*labels, "cached"), stats.cached_block_count)
    yield Reading(KV_BLOCKS, (*labels, "free"), stats.free_block_count)
    yield Reading(KV_BLOCK_CAPACITY, labels, stats.total_block_count)
    yield Reading(COMPUTED_TOKENS, labels, stats.computed_token_count)
    yield Reading(SAMPLED_TOKENS, labels, stats.generated_token_count)
    yield Reading(PREFIX_TOKENS, labels, stats.prompt_token_count)
    yield Reading(PREFIX_HITS, labels, stats.cached_token_count)
    yield Reading(PREEMPTIONS, labels, stats.preemption_count)
    yield Reading(DRAFTED_TOKENS, labels, stats.drafted_token_count)
    yield Reading(ACCEPTED_TOKENS, labels, stats.accepted_token_count)


def _read_profile(replica: Replica, labels: tuple[str, str]) -> Iterator[Reading]:
    profiler = replica.profiler
    yield Reading(QUEUE_WAIT, labels, profiler.queue_wait_s.copy())
    yield Reading(FIRST_TOKEN, labels, profiler.first_token_s.copy())
    yield Reading(TOKEN_GAP, labels, profiler.token_gap_s.copy())
    yield Reading(STEP_ROWS, labels, profiler.row_count.copy())
    yield Reading(STEP_TOKENS, labels, profiler.token_count.copy())
    for part, part_s in (
        ("queued", profiler.queued_s),
        ("prepare", profiler.prepare_s),
        ("forward", profiler.forward_s),
        ("sample", profiler.sample_s),
        ("round_trip", profiler.round_trip_s),
    ):
        yield Reading(STEP_DURATION, (*labels, part), part_s.copy())
    yield Reading(BUSY, labels, profiler.snapshot().in_flight_s)
