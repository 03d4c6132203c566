"""How pure code tells an operator what happened, without a logging library."""

from typing import Protocol


class Report(Protocol):
    """Takes note of an event."""

    def __call__(self, event: str, /, **fields: object) -> None:
        """Records `event`, a constant name in the past tense, with its facts. Never blocks, never raises."""
        ...


def report_nothing(_event: str, /, **_fields: object) -> None:
    """Drops the event."""
