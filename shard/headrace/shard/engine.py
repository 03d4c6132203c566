"""What a worker drives: an engine that runs one step at a time and blocks meanwhile."""

from typing import Protocol

from headrace.contract.engine import EngineDescription
from headrace.contract.step import StepPlan, StepResult


class Engine(Protocol):
    """Runs the steps of one batch, in order. Used from one thread."""

    @property
    def description(self) -> EngineDescription:
        """What the engine is."""
        ...

    def execute(self, plan: StepPlan) -> StepResult:
        """Applies a plan to the resident batch, computes and samples.

        Raises:
            PlanRejected: the plan broke the contract; the batch is then in no
                defined state, and only `reset` may follow.
        """
        ...

    def reset(self) -> None:
        """Empties the batch and lets step ids start again. KV blocks keep what they hold."""
        ...
