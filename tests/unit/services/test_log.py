"""Log lines keep to their vocabulary and are readable by machines."""

import ast
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from headrace.services.log import (
    EVENT_TEXTS,
    KEY_TEXTS,
    Event,
    LogFormat,
    LogLevel,
    bind_request,
    configure,
    logger,
    report,
)

ROOT = Path(__file__).resolve().parents[3]
LEVELS = {"debug", "info", "warning", "error"}


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    configure(level=LogLevel.INFO, style=LogFormat.AUTO, stream=stream)
    yield stream
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers = handlers
    root.setLevel(level)


def parsed(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_json_with_level_and_time_where_nobody_looks(lines: io.StringIO) -> None:
    logger().info(Event.SERVER_STARTED, addresses=("127.0.0.1:1",))
    [line] = parsed(lines)
    assert line.pop("timestamp")
    assert line == {"event": "server_started", "level": "info", "addresses": ["127.0.0.1:1"]}


def test_lines_below_the_level_are_dropped(lines: io.StringIO) -> None:
    logger().debug(Event.CALL_ENDED)
    assert parsed(lines) == []


def test_a_bound_request_is_on_every_line(lines: io.StringIO) -> None:
    bind_request("r-1")
    logger().info(Event.CALL_ENDED)
    assert parsed(lines)[0]["request_id"] == "r-1"


def test_a_traceback_is_one_line(lines: io.StringIO) -> None:
    try:
        raise RuntimeError("broken\nin two lines")
    except RuntimeError as error:
        logger().error(Event.CALL_CRASHED, exc_info=error)
    [line] = parsed(lines)
    assert "test_log.py" in str(line["exception"])
    assert str(line["exception"]).endswith("builtins.RuntimeError")


@pytest.mark.parametrize("style", [LogFormat.JSON, LogFormat.CONSOLE])
def test_a_traceback_quotes_nothing_that_the_bug_was_met_with(lines: io.StringIO, style: LogFormat) -> None:
    configure(level=LogLevel.DEBUG, style=style, stream=lines)

    prompt = "my-secret"

    def fail(prompt: str) -> None:
        try:
            {}[prompt]
        except KeyError as error:
            raise ValueError(f"no {prompt}") from error

    for make_line in (
        lambda error: logger().error(Event.CALL_CRASHED, exc_info=error),
        lambda error: logging.getLogger("uvicorn.error").error("odd\nat %s", error, exc_info=error),
    ):
        with pytest.raises(ValueError, match="no my") as caught:
            fail(prompt)
        make_line(caught.value)
    text = lines.getvalue()
    assert prompt not in text
    assert text.count("builtins.KeyError, the cause of:") == text.count("builtins.ValueError") == 2


def test_lines_of_libraries_are_events_too(lines: io.StringIO) -> None:
    logging.getLogger("grpc._cython.cygrpc").error("something %s", "odd")
    logging.getLogger("asyncio").info("not worth a line")
    [line] = parsed(lines)
    assert (line["event"], line["library"], line["detail"]) == (
        "library_reported",
        "grpc._cython.cygrpc",
        "something odd",
    )


def test_people_get_readable_lines() -> None:
    stream = io.StringIO()
    configure(level=LogLevel.INFO, style=LogFormat.CONSOLE, stream=stream)
    logger().info(Event.ENGINE_READY, address="unix:/a")
    structlog.reset_defaults()
    assert "engine_ready" in stream.getvalue()
    assert "address=unix:/a" in stream.getvalue()


def test_reports_of_the_router_are_logged_and_losses_are_warnings(lines: io.StringIO) -> None:
    report("replica_serving", replica_id="replica-0")
    report("replica_lost", replica_id="replica-0", detail="gone")
    assert [(line["event"], line["level"]) for line in parsed(lines)] == [
        ("replica_serving", "info"),
        ("replica_lost", "warning"),
    ]


def sources(package: str) -> list[Path]:
    return [path for path in (ROOT / package).rglob("*.py") if "__pycache__" not in path.parts]


def calls(paths: list[Path], names: set[str]) -> Iterator[tuple[Path, ast.Call]]:
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in names and node.args:
                    yield path, node


def is_event(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "Event"


def test_every_event_is_explained_and_logged_somewhere() -> None:
    assert set(EVENT_TEXTS) == set(Event)
    text = "".join(path.read_text() for path in sources("services") + sources("router") if path.name != "log.py")
    used_here = {Event.LIBRARY_REPORTED}
    assert [
        event for event in set(Event) - used_here if f"Event.{event.name}" not in text and f'"{event}"' not in text
    ] == []


def test_every_key_in_use_is_explained() -> None:
    keys = {
        keyword.arg
        for _, call in calls(sources("services"), LEVELS | {"write"})
        if is_event(call.args[0])
        for keyword in call.keywords
    }
    keys |= {keyword.arg for _, call in calls(sources("router"), {"_report", "report"}) for keyword in call.keywords}
    assert {"method", "replica_id"} <= keys  # the search finds both kinds of calls
    assert keys - {"exc_info"} - set(KEY_TEXTS) == set()


def test_what_the_router_reports_is_in_the_vocabulary() -> None:
    names = {
        call.args[0].value
        for _, call in calls(sources("router"), {"_report", "report"})
        if isinstance(call.args[0], ast.Constant)
    }
    assert "replica_lost" in names
    assert names <= {event.value for event in Event}


def test_loggers_are_given_events_and_no_free_text() -> None:
    found = [
        f"{path.name}:{call.lineno}"
        for path, call in calls(sources("services"), LEVELS)
        if "logger" in ast.unparse(call.func) and not is_event(call.args[0]) and path.name != "log.py"
    ]
    assert found == []


def test_the_reference_pages_are_up_to_date() -> None:
    script = ROOT / "scripts" / "reference_pages.py"
    checked = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
