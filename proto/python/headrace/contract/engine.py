"""The two heights at which an engine attaches, and what it says of itself."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from headrace.contract.adapter import AdapterOrder, LoadedAdapter
from headrace.contract.errors import ShardLost
from headrace.contract.generation import GenerationEvent, ValidRequest
from headrace.contract.step import StepPlan, StepResult


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDescription:
    """Facts about an engine that do not change while it runs."""

    engine: str
    """Such as `native` or `fake`."""
    architecture: str
    weight_type: str
    """Type of the weights in memory, such as `float32`."""
    vocabulary_size: int
    context_token_count: int
    """Longest sequence in tokens."""
    block_size: int
    """Tokens per KV block."""
    block_count: int
    """KV blocks that the router may use: ids [0, block_count)."""
    steps_in_flight: int
    """Steps that may be sent before the first has answered; >= 1."""
    supported_fields: frozenset[str]
    """Fields of GenerateRequest that the engine understands, as paths such as `sampling.top_p`."""
    end_of_sequence_token_ids: tuple[int, ...]
    row_limit: int = 0
    """Most rows in a step; 0 sets no limit."""
    token_limit: int = 0
    """Most tokens in a step; 0 sets no limit."""
    hidden_size: int = 0
    """Numbers in a hidden state; 0 if the engine cannot pool hidden states."""
    draft_token_limit: int = 0
    """Most tokens that a row draws in a step beyond the first; 0 if the engine does not speculate."""


class StepEngine(Protocol):
    """Runs one batch, step by step, in order. The router schedules.

    Owned by one task. A new engine starts with an empty batch, without adapters
    and with KV blocks of unknown content.
    """

    @property
    def description(self) -> EngineDescription:
        """What the engine is."""
        ...

    async def load_adapter(self, order: AdapterOrder) -> LoadedAdapter:
        """Loads an adapter while steps go on, and returns it when sequences may ask for it. Safe to repeat.

        Raises:
            FeatureUnsupported: the engine has no adapters.
            InvalidRequest: the source holds none that fits the model, or another than the order says.
            AdaptersFull: there is no room.
            ShardLost: the engine is gone.
        """
        ...

    async def unload_adapter(self, digest: str) -> None:
        """Takes an adapter from sequences to come; its memory is free when the last row that has it is released.

        Steps that were handed over before may still admit sequences that ask for
        it. Safe for one that is not there.

        Raises:
            ShardLost: the engine is gone.
        """
        ...

    def step(self, plan: StepPlan) -> Awaitable[StepResult]:
        """Hands over a plan at once and returns its result as a future.

        Plans run in the order of the calls. At most
        `description.steps_in_flight` may be unanswered.

        Raises (from the future):
            ShardLost: the engine is gone; so is every unanswered step.
            PlanRejected: the plan broke the contract; the engine must not be used further.
        """
        ...

    async def wait_lost(self) -> ShardLost:
        """Waits until the engine is gone, busy or idle, and returns why."""
        ...

    async def aclose(self) -> None:
        """Gives the engine up. Unanswered steps fail with ShardLost. Safe to repeat."""
        ...


class EngineConnector(Protocol):
    """Reaches the engines of a deployment."""

    async def connect(self, addresses: tuple[str, ...], on_progress: Callable[[str], None]) -> StepEngine:
        """Connects the ranks of one replica, rank 0 first, and waits until they can take steps.

        Keeps trying while the shard cannot be reached or loads its model;
        `on_progress` is told what it waits for. Cancelling gives up cleanly.

        Raises:
            StartupError: the shard says that it can never start.
        """
        ...


class RequestEngine(Protocol):
    """Schedules by itself. The router admits, forwards, cancels and accounts."""

    @property
    def description(self) -> EngineDescription:
        """What the engine is."""
        ...

    def generate(self, request: ValidRequest) -> AsyncIterator[GenerationEvent]:
        """Runs one request. Closing the iterator cancels it.

        Raises:
            ShardLost: the engine is gone.
            RowFailed: the engine failed on this request.
        """
        ...

    async def aclose(self) -> None:
        """Gives the engine up. Safe to repeat."""
        ...
