"""Sets up logging, and holds the vocabulary: every event that a process may log and every key it may carry."""

import logging
import sys
import traceback
from collections.abc import Mapping
from enum import StrEnum
from typing import TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor


class LogFormat(StrEnum):
    """How a line of the log looks."""

    AUTO = "auto"
    CONSOLE = "console"
    JSON = "json"


class LogLevel(StrEnum):
    """The least severe line that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Event(StrEnum):
    """What a log line is about. `EVENT_TEXTS` explains each."""

    ACCESS_REFUSED = "access_refused"
    ACCESS_RENEWED = "access_renewed"
    ADAPTER_LOADED = "adapter_loaded"
    ADAPTER_LOAD_FAILED = "adapter_load_failed"
    ADAPTER_UNLOADED = "adapter_unloaded"
    CALL_CRASHED = "call_crashed"
    CALL_ENDED = "call_ended"
    CERTIFICATE_REFUSED = "certificate_refused"
    CERTIFICATE_RENEWED = "certificate_renewed"
    DRAIN_ENDED = "drain_ended"
    DRAIN_STARTED = "drain_started"
    ENGINE_FAILED = "engine_failed"
    ENGINE_PROGRESSED = "engine_progressed"
    ENGINE_READY = "engine_ready"
    LIBRARY_REPORTED = "library_reported"
    METRICS_SERVED = "metrics_served"
    MODEL_DEFAULTS_DROPPED = "model_defaults_dropped"
    NEW_CALLS_REFUSED = "new_calls_refused"
    PARENT_LOST = "parent_lost"
    PLAN_REJECTED = "plan_rejected"
    REPLICA_LOST = "replica_lost"
    REPLICA_REFUSED = "replica_refused"
    REPLICA_SERVING = "replica_serving"
    REPLICA_START_FAILED = "replica_start_failed"
    REQUEST_REPLAYED = "request_replayed"
    ROW_FAILED = "row_failed"
    SERVER_STARTED = "server_started"
    SERVER_STOPPED = "server_stopped"
    SHARD_EXITED = "shard_exited"
    SHARD_STARTED = "shard_started"
    SIDECAR_EXITED = "sidecar_exited"
    SIDECAR_STARTED = "sidecar_started"
    STEP_STREAM_ENDED = "step_stream_ended"
    STEP_STREAM_OPENED = "step_stream_opened"
    STEP_STREAM_TAKEN_OVER = "step_stream_taken_over"


EVENT_TEXTS: Mapping[Event, str] = {
    Event.ACCESS_REFUSED: "The file of keys and tenants was replaced by a wrong one; the last good one stays in use.",
    Event.ACCESS_RENEWED: "Calls are checked by the file of keys and tenants that has replaced the last one.",
    Event.ADAPTER_LOADED: "An adapter is on every replica, and requests may name it.",
    Event.ADAPTER_LOAD_FAILED: "An adapter cannot be loaded, or not again on a replica, which gets no request for it.",
    Event.ADAPTER_UNLOADED: "An adapter was taken back; replicas drop it when no request uses it any more.",
    Event.CALL_CRASHED: "A call met a bug; the line holds the traceback that its caller does not get.",
    Event.CALL_ENDED: "A call ended, well or not. Health checks, reflection and watches are logged at `debug`.",
    Event.CERTIFICATE_REFUSED: "Files of a certificate were replaced by useless ones; the last good ones stay in use.",
    Event.CERTIFICATE_RENEWED: "New connections are made with the certificate that has replaced the last one.",
    Event.DRAIN_ENDED: "The server has no calls left, or has ended the ones that took too long.",
    Event.DRAIN_STARTED: "The server was told to stop: health says NOT_SERVING, late calls are still served.",
    Event.ENGINE_FAILED: "The engine cannot start.",
    Event.ENGINE_PROGRESSED: "What the engine is doing while it starts.",
    Event.ENGINE_READY: "The engine takes steps.",
    Event.LIBRARY_REPORTED: "A library wrote to Python's own logging.",
    Event.METRICS_SERVED: "Prometheus can scrape the process.",
    Event.MODEL_DEFAULTS_DROPPED: "The model asks for sampling options by default that the engine lacks.",
    Event.NEW_CALLS_REFUSED: "The drain refuses new calls from now on.",
    Event.PARENT_LOST: "The process that started this one is gone, so it ends too.",
    Event.PLAN_REJECTED: "A shard refused a step plan: a bug, or router and shard are of different versions.",
    Event.REPLICA_LOST: "A replica was lost; its requests go on elsewhere or wait for it.",
    Event.REPLICA_REFUSED: "A model server runs another model than the router speaks for.",
    Event.REPLICA_SERVING: "A replica takes requests.",
    Event.REPLICA_START_FAILED: "A model server says that it can never start.",
    Event.REQUEST_REPLAYED: "A request of a lost replica goes on at another one, or at the restarted one.",
    Event.ROW_FAILED: "The engine failed on one request; the others are not affected.",
    Event.SERVER_STARTED: "The server listens.",
    Event.SERVER_STOPPED: "The server has closed its addresses.",
    Event.SHARD_EXITED: "A shard process ended. `restart_in_s` says when the next one starts.",
    Event.SHARD_STARTED: "A shard process was started.",
    Event.SIDECAR_EXITED: "The REST sidecar ended. `restart_in_s` says when the next one starts.",
    Event.SIDECAR_STARTED: "The REST sidecar was started.",
    Event.STEP_STREAM_ENDED: "A router gave the shard up.",
    Event.STEP_STREAM_OPENED: "A router took the shard, with an empty batch.",
    Event.STEP_STREAM_TAKEN_OVER: "Another router took the shard over.",
}

KEY_TEXTS: Mapping[str, str] = {
    "adapter": "Name of an adapter.",
    "address": "Where a server listens or a shard is reached.",
    "addresses": "Where the ranks of a replica are reached, or a server listens.",
    "code": "Status of a call, as gRPC names it.",
    "detail": "What happened, for a person. Never a prompt, a completion or a secret.",
    "duration_s": "How long it took, in seconds.",
    "event": "Name of the event.",
    "exception": "The traceback of a bug, without messages: one may quote a request.",
    "exit_code": "Exit status of a process; negative is the signal that ended it.",
    "fields": "Fields of GenerateRequest concerned.",
    "generated_token_count": "Tokens generated so far.",
    "in_flight_count": "Calls that have not ended.",
    "instance_id": "Changes with every start of a shard.",
    "key_name": "Name of the caller's key, never the key.",
    "level": "Severity.",
    "library": "Name of a library's logger.",
    "message_count": "Messages sent in a response stream.",
    "method": "Full name of a gRPC method.",
    "path": "Name of a file.",
    "pid": "Id of a process.",
    "rank": "Rank of an adapter's matrices.",
    "reason": "Constant reason of an error, as in `google.rpc.ErrorInfo`.",
    "replica_id": "Id of a replica.",
    "request_count": "Requests concerned.",
    "request_id": "Id of a request, from `x-request-id` or chosen by the server.",
    "restart_in_s": "When a process is started again, in seconds from now.",
    "sequence_id": "Id of a sequence within the router.",
    "size_bytes": "Memory that it takes, in bytes.",
    "shard": "Number of a supervised shard, from 0.",
    "step_id": "Number of a step.",
    "tenant": "For whom a caller calls.",
    "timestamp": "Moment in UTC, ISO 8601.",
}


def logger() -> FilteringBoundLogger:
    """Returns the logger. What `bind_request` bound in this task travels with every line."""
    return cast("FilteringBoundLogger", structlog.get_logger())


def bind_request(request_id: str) -> None:
    """Adds a request's id to every further line of this task and of tasks started by it."""
    structlog.contextvars.bind_contextvars(request_id=request_id)


def bind_caller(key_name: str, tenant: str) -> None:
    """Adds who calls to every further line of this task and of tasks started by it; nothing for who has no key."""
    if key_name:
        structlog.contextvars.bind_contextvars(key_name=key_name, tenant=tenant)


def report(event: str, /, **fields: object) -> None:
    """Logs what the router reports. Losses are warnings, the rest is information."""
    known = Event(event)
    if known in _WARNINGS:
        logger().warning(known, **fields)
    else:
        logger().info(known, **fields)


_WARNINGS = {
    Event.ADAPTER_LOAD_FAILED,
    Event.PLAN_REJECTED,
    Event.REPLICA_LOST,
    Event.REPLICA_REFUSED,
    Event.REPLICA_START_FAILED,
    Event.ROW_FAILED,
}


def configure(*, level: LogLevel, style: LogFormat, stream: TextIO = sys.stderr) -> None:
    """Sends every line, those of libraries included, to a stream.

    `LogFormat.AUTO` is readable on a terminal and JSON elsewhere.
    """
    is_console = style is LogFormat.CONSOLE or (style is LogFormat.AUTO and stream.isatty())
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=stream.isatty()) if is_console else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _write_traceback,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level.value),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_LibraryHandler()]
    root.setLevel(logging.WARNING)


def _write_traceback(_logger: object, _method: str, line: EventDict) -> EventDict:
    """Puts a traceback in the place of an exception, for every renderer: structlog's own may show local variables."""
    given = line.pop("exc_info", None)
    error = given if isinstance(given, BaseException) else (given[1] if isinstance(given, tuple) else None)
    if error is not None:
        line["exception"] = traceback_of(error)
    return line


def traceback_of(error: BaseException) -> str:
    """Returns where an exception was raised and of what type it is, with its causes, the first one first.

    Without the messages: one of a bug may quote the request that it failed on,
    and prompts do not belong into a log.
    """
    parts: list[str] = []
    follows = ""
    current: BaseException | None = error
    while current is not None:
        frames = "".join(traceback.format_tb(current.__traceback__))
        kind = type(current)
        parts.append(f"Traceback (most recent call last):\n{frames}{kind.__module__}.{kind.__qualname__}{follows}")
        cause = current.__cause__
        follows = ", the cause of:" if cause is not None else ", during which came:"
        current = cause if cause is not None or current.__suppress_context__ else current.__context__
    return "\n".join(reversed(parts))


class _LibraryHandler(logging.Handler):
    """Passes the lines of libraries on, as events of one name."""

    def emit(self, record: logging.LogRecord) -> None:
        """Logs a record; never raises."""
        write = logger().error if record.levelno >= logging.ERROR else logger().warning
        write(
            Event.LIBRARY_REPORTED,
            library=record.name,
            # The lines that follow in some are dumps of what was at hand.
            detail=record.getMessage().partition("\n")[0],
            exc_info=record.exc_info or None,
        )
