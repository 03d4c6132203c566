"""A plan on its way to the engine, and what is new with it."""

from dataclasses import dataclass

from headrace.contract.step import StepPlan
from headrace.router.sequence import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """A plan to send, and what is new with it."""

    plan: StepPlan
    started: tuple[Sequence, ...]
    """Sequences that are admitted for the first time."""
    row_count: int
    """Rows that compute."""
    token_count: int
    """Tokens that they compute."""
