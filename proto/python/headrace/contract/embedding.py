"""A request for vectors, from the client's words to its answer."""

from dataclasses import dataclass

from headrace.contract.generation import TextPrompt, TokenPrompt
from headrace.contract.pooling import Pooling

EmbeddingInput = TextPrompt | TokenPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """What a client asked, field by field as in headrace.v1.EmbedRequest; nothing is checked yet."""

    inputs: tuple[EmbeddingInput | None, ...]
    """None for an input that has no form."""
    pooling: Pooling | None
    model: str = ""
    request_id: str = ""
    normalize: bool | None = None
    dimension_count: int | None = None
    truncate_token_count: int | None = None
    add_special_tokens: bool | None = None
    adapter: str = ""
    priority: int | None = None
    cache_salt: str = ""
    tenant: str = ""
    """As in a `GenerationRequest`."""
    deadline_s: float | None = None
    """Moment on the process's clock when the caller stops waiting; None never."""
    trace_parent: str = ""
    """W3C's name of the span that this belongs to; empty where nobody traces it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """The vector of one input."""

    values: bytes
    """float32, little-endian."""
    token_count: int
    """Tokens of the input."""
    cached_token_count: int
    """Those of them that the prefix cache held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """The answer to a request."""

    request_id: str
    model: str
    embeddings: tuple[Embedding, ...]
    """In the order of the inputs."""
    queued_s: float
    """From arrival until the first step was planned."""
    computed_s: float
    """From then until the last vector came back."""
