"""Tracing is imported only where it is asked for, and missed where it cannot be."""

import sys

import pytest

from headrace.contract.errors import StartupError
from headrace.services.settings import RouterSettings
from headrace.services.settings_loader import load_settings
from headrace.services.telemetry.tracing import trace_process

REQUIRED = ("--model=m", "--shard=127.0.0.1:1")


def settings_with(*arguments: str) -> RouterSettings:
    return load_settings(RouterSettings, [*REQUIRED, *arguments], {}, program="headrace router")


async def test_nobody_asked_for_it() -> None:
    async with trace_process(settings_with(), default_name="test") as tracing:
        assert tracing is None


async def test_without_the_package_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "headrace.services.telemetry.spans", None)
    with pytest.raises(StartupError, match=r"pip install 'headrace\[tracing\]'"):
        async with trace_process(settings_with("--otlp-endpoint=http://127.0.0.1:1"), default_name="test"):
            pytest.fail("it traces")


@pytest.mark.parametrize("text", ["localhost:4317", "ftp://host:1", "http://host:1/v1/traces"])
def test_an_endpoint_that_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(StartupError, match=r"--otlp-endpoint: .* is no http://host:port"):
        settings_with(f"--otlp-endpoint={text}")
