"""Starts tracing in a process whose operator asks for it. Nothing of OpenTelemetry is imported before."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from headrace.contract.errors import StartupError
from headrace.services.exposure import check_trace_endpoint
from headrace.services.settings import ProcessSettings

if TYPE_CHECKING:  # an import of OpenTelemetry, which is not installed everywhere
    from headrace.services.telemetry.spans import Tracing


@asynccontextmanager
async def trace_process(settings: ProcessSettings, *, default_name: str) -> "AsyncIterator[Tracing | None]":
    """Traces meanwhile, and sends what is left at the end; None where nobody asked for it.

    Raises:
        StartupError: OpenTelemetry is not installed, or traces would go over a network in plain text.
    """
    if not settings.otlp_endpoint:
        yield None
        return
    check_trace_endpoint(settings.otlp_endpoint, allows_remote_plaintext=settings.insecure)
    try:
        from headrace.services.telemetry.spans import Tracing  # noqa: PLC0415  # see above
    except ImportError as error:
        raise StartupError(
            f"--otlp-endpoint needs OpenTelemetry ({error}): pip install 'headrace[tracing]', or leave it out"
        ) from error
    tracing = Tracing.exporting_to(
        settings.otlp_endpoint,
        service_name=settings.otlp_service_name or default_name,
        share=settings.trace_share,
    )
    try:
        yield tracing
    finally:
        await tracing.close()
