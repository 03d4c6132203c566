"""What a worker drives: an engine that runs one step at a time and blocks meanwhile."""

from collections.abc import Callable
from typing import Protocol

from headrace.contract.adapter import AdapterOrder, LoadedAdapter
from headrace.contract.engine import EngineDescription
from headrace.contract.step import StepPlan, StepResult
from headrace.contract.vocabulary import Vocabulary


class Engine(Protocol):
    """Runs the steps of one batch, in order. Used from one thread."""

    @property
    def description(self) -> EngineDescription:
        """What the engine is."""
        ...

    def enter_thread(self) -> None:
        """Called first, and once, on the thread that runs the engine."""
        ...

    def load_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Takes the model's tokens, which a sequence with a grammar needs. Survives a reset.

        Raises:
            FeatureUnsupported: the engine knows no grammars.
            ValueError: no token of the vocabulary ends a completion.
        """
        ...

    def prepare_adapter(self, order: AdapterOrder) -> Callable[[], LoadedAdapter]:
        """Reads an adapter and returns what makes it usable. Safe on any thread while the engine runs.

        The result is called between steps, on the engine's own thread, and raises
        AdaptersFull when there is no room. An adapter that is there already stays.

        Raises:
            FeatureUnsupported: the engine has no adapters.
            InvalidRequest: the source holds none that fits the model, or another than the order says.
        """
        ...

    def drop_adapter(self, digest: str) -> None:
        """Takes an adapter from sequences to come; rows that have it keep it. Safe for one that is not there."""
        ...

    def execute(self, plan: StepPlan) -> StepResult:
        """Applies a plan to the resident batch, computes and samples.

        Raises:
            PlanRejected: the plan broke the contract; the batch is then in no
                defined state, and only `reset` may follow.
        """
        ...

    def reset(self) -> None:
        """Empties the batch, drops every adapter and lets step ids start again. KV blocks keep what they hold."""
        ...
