"""What a worker drives: an engine that runs one step at a time and blocks meanwhile."""

from typing import Protocol

from headrace.contract.engine import EngineDescription
from headrace.contract.step import StepPlan, StepResult
from headrace.contract.vocabulary import Vocabulary


class Engine(Protocol):
    """Runs the steps of one batch, in order. Used from one thread."""

    @property
    def description(self) -> EngineDescription:
        """What the engine is."""
        ...

    def load_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Takes the model's tokens, which a sequence with a grammar needs. Survives a reset.

        Raises:
            FeatureUnsupported: the engine knows no grammars.
            ValueError: no token of the vocabulary ends a completion.
        """
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
