"""What a shard tells of itself: what it runs, and how long the parts of its steps take."""

from collections.abc import Iterator
from typing import Final

from headrace.contract.engine import EngineDescription
from headrace.contract.histogram import STEP_BOUNDS_S, Histogram
from headrace.contract.step import StepTimings
from headrace.services.telemetry.metric import Metric, MetricKind, Reading

READY: Final = Metric(
    name="headrace_shard_ready", kind=MetricKind.GAUGE, text="1 while the shard takes steps, 0 while it starts."
)
ENGINE: Final = Metric(
    name="headrace_shard_engine_info",
    kind=MetricKind.GAUGE,
    text="1, with what the shard runs; not there while it starts.",
    labels=("engine", "architecture", "weight_type"),
)
KV_BLOCK_CAPACITY: Final = Metric(
    name="headrace_shard_kv_block_capacity",
    kind=MetricKind.GAUGE,
    text="KV blocks. How they are used is for the router to tell.",
)
KV_BLOCK_TOKENS: Final = Metric(
    name="headrace_shard_kv_block_tokens", kind=MetricKind.GAUGE, text="Tokens that a KV block holds."
)
STREAMS: Final = Metric(
    name="headrace_shard_step_streams_total",
    kind=MetricKind.COUNTER,
    text="Times that a router took the shard, with an empty batch.",
)
STEP_DURATION: Final = Metric(
    name="headrace_shard_step_duration_seconds",
    kind=MetricKind.HISTOGRAM,
    text="Time of a step by `part`: `queued`, `prepare`, `forward`, `sample`.",
    labels=("part",),
    bounds=STEP_BOUNDS_S,
)

SHARD_METRICS: Final = (READY, ENGINE, KV_BLOCK_CAPACITY, KV_BLOCK_TOKENS, STREAMS, STEP_DURATION)


class StepMeter:
    """Counts the steps of a shard. Use on its event loop."""

    def __init__(self) -> None:
        self.stream_count = 0
        """Streams of steps that were opened."""
        self.queued_s: Final = Histogram(STEP_BOUNDS_S)
        self.prepare_s: Final = Histogram(STEP_BOUNDS_S)
        self.forward_s: Final = Histogram(STEP_BOUNDS_S)
        self.sample_s: Final = Histogram(STEP_BOUNDS_S)
        """All these as in `StepTimings`, a value for each step."""

    def add(self, timings: StepTimings) -> None:
        """Takes in a step."""
        self.queued_s.observe(timings.queued_s)
        self.prepare_s.observe(timings.prepare_s)
        self.forward_s.observe(timings.forward_s)
        self.sample_s.observe(timings.sample_s)


def read_shard(meter: StepMeter, engine: EngineDescription | None) -> Iterator[Reading]:
    """Yields what `SHARD_METRICS` are now, of an engine that runs or, as None, one that starts."""
    yield Reading(READY, (), int(engine is not None))
    if engine is not None:
        yield Reading(ENGINE, (engine.engine, engine.architecture, engine.weight_type), 1)
        yield Reading(KV_BLOCK_CAPACITY, (), engine.block_count)
        yield Reading(KV_BLOCK_TOKENS, (), engine.block_size)
    yield Reading(STREAMS, (), meter.stream_count)
    yield Reading(STEP_DURATION, ("queued",), meter.queued_s.copy())
    yield Reading(STEP_DURATION, ("prepare",), meter.prepare_s.copy())
    yield Reading(STEP_DURATION, ("forward",), meter.forward_s.copy())
    yield Reading(STEP_DURATION, ("sample",), meter.sample_s.copy())
