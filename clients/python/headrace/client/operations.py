"""What a server says of itself: models, replicas, load, adapters, health."""

from dataclasses import dataclass
from enum import StrEnum

from headrace.contract.sampling import SamplingOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """What requests to a model may ask for."""

    context_token_count: int
    """Longest prompt plus completion."""
    prompt_token_count: int
    """Longest prompt."""
    vocabulary_size: int
    stop_sequence_count: int
    """Most stop sequences."""
    stop_sequence_size_bytes: int
    """Longest stop sequence."""
    stop_token_count: int
    """Most stop token ids."""
    completion_count: int
    """Most completions of one request, those that `best_of` leaves out included."""
    top_logprob_count: int
    """Most likeliest tokens to report."""
    message_size_bytes: int
    """Largest message that the server receives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingLimits:
    """What `embed` takes."""

    dimension_count: int
    """Numbers in a vector."""
    input_count: int
    """Most inputs of one request."""
    token_count: int
    """Longest input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A served model."""

    name: str
    """Name that requests use."""
    engine: str
    """Engine that runs it, such as `native`."""
    architecture: str
    """As its configuration names it."""
    weight_type: str
    """Type of the weights in memory, such as `float32`."""
    limits: ModelLimits
    default_sampling: SamplingOptions
    """What sampling options mean when they are left out."""
    default_max_new_token_count: int | None
    """None means "up to the context length"."""
    supported_fields: tuple[str, ...]
    """Fields of `headrace.v1.GenerateRequest` that the engine understands, such as `sampling.top_p`. Any other is
    refused with `FeatureUnsupported`."""
    end_of_sequence_token_ids: tuple[int, ...]
    has_chat_template: bool
    tool_format: str = ""
    """How it writes tool calls: `hermes`, `llama3` or `mistral`. Empty if its calls stay in the text."""
    reasoning_format: str = ""
    """How it marks its reasoning: `think` or `mistral`. Empty if its reasoning is not told apart."""
    embedding: EmbeddingLimits | None = None
    """None if the engine has no embeddings."""


class ReplicaState(StrEnum):
    """Whether a replica takes requests."""

    UNKNOWN = "unknown"
    """A state newer than this client."""
    STARTING = "starting"
    """Connecting, or loading the model."""
    SERVING = "serving"
    """Takes requests."""
    DRAINING = "draining"
    """Lets its requests end and takes no new ones."""
    LOST = "lost"
    """Being reconnected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProfile:
    """Sums over the answered steps of a replica, in seconds.

    While steps follow each other without a break, `in_flight_s` is the time that
    passed: what the engine did not spend on preparing, computing and sampling of
    it, it waited for the next plan.
    """

    step_count: int = 0
    """Steps that were answered."""
    queued_s: float = 0.0
    """In the shard, behind the step before."""
    prepare_s: float = 0.0
    """From the plan to the model's inputs."""
    forward_s: float = 0.0
    """Running the model."""
    sample_s: float = 0.0
    """From logits to tokens."""
    round_trip_s: float = 0.0
    """From the plan's departure to the answer's arrival. Steps overlap, so this may be more time than passed."""
    in_flight_s: float = 0.0
    """During which one or more steps were unanswered."""

    @property
    def waiting_s(self) -> float:
        """Time in flight that the engine did not work: what the wire and the router add to the steps."""
        return self.in_flight_s - self.prepare_s - self.forward_s - self.sample_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLoad:
    """What a replica is doing, and what it did since the router knows it."""

    waiting_count: int
    """Requests waiting for their first step."""
    running_count: int
    """Requests in the batch."""
    leased_block_count: int
    """KV blocks in use by requests."""
    cached_block_count: int
    """KV blocks that hold cached prefixes and can be taken back."""
    total_block_count: int
    step_count: int
    computed_token_count: int
    """Prompt and generated tokens."""
    generated_token_count: int
    cached_token_count: int
    """Prompt tokens found in the prefix cache."""
    preemption_count: int
    row_count: int
    """Rows over all steps; divided by `step_count` it is the mean batch."""
    profile: StepProfile = StepProfile()
    """Where the time of its steps went; all zero from a server that does not tell."""
    drafted_token_count: int = 0
    """Tokens that were guessed ahead."""
    accepted_token_count: int = 0
    """Guessed tokens that turned out right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """A model server, or a group of ranks that runs one model."""

    id: str
    addresses: tuple[str, ...]
    """Of its ranks, rank 0 first."""
    model: str
    """Empty until it has described itself."""
    state: ReplicaState
    detail: str
    """Why it is in this state."""
    load: ReplicaLoad
    restart_count: int
    """How often it was lost and came back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a router is doing."""

    waiting_count: int
    """Requests waiting, over all replicas."""
    waiting_token_count: int
    """Their prompt tokens."""
    waiting_limit: int
    """Most waiting requests before new ones are refused with `QueueFull`."""
    running_count: int
    """Requests in a batch."""
    expected_wait_s: float
    """How long a new request would wait, as far as the router can tell."""
    replicas: tuple[Replica, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A loaded LoRA adapter."""

    name: str
    """Name that requests use."""
    source: str
    """Where it was loaded from."""
    rank: int
    """Rank of its matrices."""


class HealthState(StrEnum):
    """The state of a part of the server."""

    UNKNOWN = "unknown"
    """A state newer than this client."""
    STARTING = "starting"
    SERVING = "serving"
    DEGRADED = "degraded"
    """Serves, but not as it should."""
    DRAINING = "draining"
    """Ends its requests and takes no new ones."""
    NOT_SERVING = "not_serving"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """One thing that was looked at."""

    name: str
    """Constant, such as `shard_connected`."""
    passed: bool
    detail: str
    """What was found, for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentHealth:
    """The health of one part."""

    state: HealthState
    checks: tuple[HealthCheck, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaHealth:
    """The health of a replica."""

    id: str
    replica: ComponentHealth
    """The replica as a whole."""
    ranks: tuple[ComponentHealth, ...]
    """Rank 0 first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The health of a router and of all it depends on."""

    router: ComponentHealth
    replicas: tuple[ReplicaHealth, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """The outcome of generating one token through a replica."""

    replica_id: str
    token_id: int
    duration_s: float
    """From the request to the token."""
