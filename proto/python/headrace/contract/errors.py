"""Every error that headrace raises on purpose, in one tree.

    HeadraceError
    ├── RequestError                 the caller's doing
    │   ├── InvalidRequest           a field is out of range
    │   ├── FeatureUnsupported       the engine lacks an option
    │   ├── ModelNotFound
    │   ├── AdapterNotFound
    │   ├── DuplicateAdapter         the name is in use
    │   ├── AdaptersFull             another one has to be unloaded first
    │   ├── ReplicaNotFound
    │   ├── DuplicateRequest         the request id is in use
    │   ├── DuplicateReplica         the address is in use
    │   ├── ReplicaBusy              removing it would lose its requests
    │   ├── Unauthenticated
    │   ├── Forbidden
    │   ├── RequestRefused           the request brought shards down
    │   ├── DeadlineExceeded         ran out of the caller's time
    │   ├── RequestAborted           ended by `Abort`, and half an answer is none
    │   └── ReaderStalled            the caller stopped reading
    └── ServerError                  ours
        ├── QueueFull                come back later
        ├── QuotaExceeded
        ├── NotReady                 no replica serves
        ├── Draining                 the server is going away
        ├── ShardLost                a shard died and the request could not be replayed
        ├── RowFailed                the engine failed on this request alone
        ├── PlanRejected             a step plan broke the contract
        └── StartupError             the process cannot start

An error carries a constant `reason`, which clients may rely on, and a message in
prose, which may change. How an error maps to a status is decided where the
transport is (services/status.py); nothing here knows of gRPC.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


class HeadraceError(Exception):
    """The root of the tree."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self, message: str, *, metadata: Mapping[str, str] | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        """What happened, for a person."""
        self.metadata: dict[str, str] = dict(metadata or {})
        """Facts for a program; travels in `google.rpc.ErrorInfo`."""
        self.retry_after_s = retry_after_s
        """Seconds after which trying again makes sense; None if it never does."""


class RequestError(HeadraceError):
    """The caller's doing: the same request will fail again."""

    reason = "BAD_REQUEST"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One thing wrong with one field."""

    field: str
    """Path from the request's root, such as `sampling.top_p` or `chat.messages[0].role`; empty for the whole."""
    description: str
    """What is wrong, with the limit and the value."""


class InvalidRequest(RequestError):
    """A field is missing, malformed or out of range."""

    reason = "INVALID_REQUEST"

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" if v.field else v.description for v in violations))
        self.violations = tuple(violations)

    @classmethod
    def of(cls, field: str, description: str) -> "InvalidRequest":
        """Returns the error for a single field."""
        return cls([FieldViolation(field, description)])


class FeatureUnsupported(RequestError):
    """The engine, the model or this release lacks an option."""

    reason = "FEATURE_UNSUPPORTED"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}", metadata={"field": field})
        self.field = field


class ModelNotFound(RequestError):
    """No model of this name is served."""

    reason = "MODEL_NOT_FOUND"


class AdapterNotFound(RequestError):
    """No adapter of this name is loaded."""

    reason = "ADAPTER_NOT_FOUND"


class DuplicateAdapter(RequestError):
    """An adapter of this name is loaded, or being loaded."""

    reason = "DUPLICATE_ADAPTER"


class AdaptersFull(RequestError):
    """The engine holds as many adapters as it may."""

    reason = "ADAPTERS_FULL"


class ReplicaNotFound(RequestError):
    """No replica has this id."""

    reason = "REPLICA_NOT_FOUND"


class DuplicateRequest(RequestError):
    """A request with this id is waiting or running."""

    reason = "DUPLICATE_REQUEST"


class DuplicateReplica(RequestError):
    """One of the addresses belongs to a replica already."""

    reason = "DUPLICATE_REPLICA"


class ReplicaBusy(RequestError):
    """The replica has requests that could go nowhere else."""

    reason = "REPLICA_BUSY"


class Unauthenticated(RequestError):
    """The caller did not say who it is, or not credibly."""

    reason = "UNAUTHENTICATED"


class Forbidden(RequestError):
    """The caller may not do this."""

    reason = "FORBIDDEN"


class RequestRefused(RequestError):
    """The request was running alone each time a shard died."""

    reason = "REQUEST_REFUSED"


class DeadlineExceeded(RequestError):
    """The caller's deadline passed."""

    reason = "DEADLINE_EXCEEDED"


class RequestAborted(RequestError):
    """Someone ended the request by its id, and what it had so far is no answer."""

    reason = "REQUEST_ABORTED"


class ReaderStalled(RequestError):
    """The caller did not read its stream for longer than the server waits."""

    reason = "READER_STALLED"


class ServerError(HeadraceError):
    """Ours: the request may be fine."""

    reason = "SERVER_ERROR"


class QueueFull(ServerError):
    """The waiting queue is at its limit."""

    reason = "QUEUE_FULL"


class QuotaExceeded(ServerError):
    """The tenant is over its share."""

    reason = "QUOTA_EXCEEDED"


class NotReady(ServerError):
    """No replica takes requests yet."""

    reason = "NOT_READY"


class Draining(ServerError):
    """The server or the replica takes no new requests."""

    reason = "DRAINING"


class ShardLost(ServerError):
    """A shard died, or its connection did."""

    reason = "SHARD_LOST"

    def __init__(self, message: str, *, tokens_sent: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.tokens_sent = tokens_sent
        """Whether the caller had already received tokens: then it must not simply retry."""


class RowFailed(ServerError):
    """The engine failed on this request and on no other."""

    reason = "ROW_FAILED"


class PlanRejected(ServerError):
    """A step plan broke the contract: a bug of the router or a version mismatch."""

    reason = "PLAN_REJECTED"


class StartupError(ServerError):
    """The process cannot start; the message says what to do."""

    reason = "STARTUP_ERROR"
