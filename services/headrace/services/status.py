"""Maps every error to the gRPC status that a caller sees: the one table."""

from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from headrace.contract.errors import (
    AdapterNotFound,
    AdaptersFull,
    DeadlineExceeded,
    Draining,
    DuplicateAdapter,
    DuplicateReplica,
    DuplicateRequest,
    FeatureUnsupported,
    Forbidden,
    HeadraceError,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    PlanRejected,
    QueueFull,
    QuotaExceeded,
    ReaderStalled,
    ReplicaBusy,
    ReplicaNotFound,
    RequestAborted,
    RequestError,
    RequestRefused,
    RowFailed,
    ServerError,
    ShardLost,
    StartupError,
    Unauthenticated,
)
from headrace.services.duration import duration_to_proto

DOMAIN = "headrace"
"""Domain of every `google.rpc.ErrorInfo`."""

PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""Trailer that gRPC's own retries obey."""

# HTTP/2 peers commonly refuse header lists over 8 KiB, and a status is sent twice:
# as grpc-message, where a byte may take three, and in base64 within the details.
_MESSAGE_LIMIT_BYTES = 512
_METADATA_LIMIT_BYTES = 256
_DETAILS_LIMIT_BYTES = 2560

CODES: dict[type[HeadraceError], grpc.StatusCode] = {
    HeadraceError: grpc.StatusCode.INTERNAL,
    RequestError: grpc.StatusCode.INVALID_ARGUMENT,
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    FeatureUnsupported: grpc.StatusCode.UNIMPLEMENTED,
    ModelNotFound: grpc.StatusCode.NOT_FOUND,
    AdapterNotFound: grpc.StatusCode.NOT_FOUND,
    ReplicaNotFound: grpc.StatusCode.NOT_FOUND,
    DuplicateRequest: grpc.StatusCode.ALREADY_EXISTS,
    DuplicateAdapter: grpc.StatusCode.ALREADY_EXISTS,
    AdaptersFull: grpc.StatusCode.FAILED_PRECONDITION,
    DuplicateReplica: grpc.StatusCode.ALREADY_EXISTS,
    ReplicaBusy: grpc.StatusCode.FAILED_PRECONDITION,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    # Not UNAVAILABLE or ABORTED: generic clients retry those, and it would kill the next shard.
    RequestRefused: grpc.StatusCode.FAILED_PRECONDITION,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    RequestAborted: grpc.StatusCode.CANCELLED,
    ReaderStalled: grpc.StatusCode.CANCELLED,
    ServerError: grpc.StatusCode.INTERNAL,
    QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    NotReady: grpc.StatusCode.UNAVAILABLE,
    Draining: grpc.StatusCode.UNAVAILABLE,
    ShardLost: grpc.StatusCode.UNAVAILABLE,
    RowFailed: grpc.StatusCode.INTERNAL,
    PlanRejected: grpc.StatusCode.INTERNAL,
    StartupError: grpc.StatusCode.INTERNAL,
}
"""Status of each class, abstract ones included, so that a new subclass is noticed by a test."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStatus:
    """How a failed call ends."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]
    """`grpc-status-details-bin` and, where waiting helps, the retry pushback."""


def code_of(error: HeadraceError, *, messages_sent: bool = False) -> grpc.StatusCode:
    """Returns the status code of an error.

    `UNAVAILABLE` tells every client to try again, so it is `ABORTED` once the
    caller holds a part of the answer.
    """
    code = next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)
    tokens_sent = isinstance(error, ShardLost) and error.tokens_sent
    answer_begun = tokens_sent or (messages_sent and isinstance(error, Draining))
    return grpc.StatusCode.ABORTED if answer_begun else code


def status_of(error: HeadraceError, *, request_id: str, messages_sent: bool = False) -> CallStatus:
    """Returns the whole status of an error: code, text and details."""
    metadata = {**error.metadata, "request_id": request_id}
    info = error_details_pb2.ErrorInfo(
        reason=error.reason,
        domain=DOMAIN,
        metadata={key: _shortened(value, _METADATA_LIMIT_BYTES) for key, value in metadata.items()},
    )
    details: list[Message] = [info]
    if error.retry_after_s is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=duration_to_proto(error.retry_after_s)))
    if isinstance(error, InvalidRequest):
        room = _DETAILS_LIMIT_BYTES - sum(detail.ByteSize() for detail in details)
        details.append(_bad_request(error, room))
    code = code_of(error, messages_sent=messages_sent)
    return _call_status(code, _shortened(error.message, _MESSAGE_LIMIT_BYTES), details, error.retry_after_s)


def internal_status(*, request_id: str) -> CallStatus:
    """Returns the status of a bug: a fixed text, since the detail belongs in the log."""
    info = error_details_pb2.ErrorInfo(reason=HeadraceError.reason, domain=DOMAIN, metadata={"request_id": request_id})
    message = f"internal error; the server's log explains it under request id {request_id}"
    return _call_status(grpc.StatusCode.INTERNAL, message, [info], None)


def _call_status(
    code: grpc.StatusCode, message: str, details: list[Message], retry_after_s: float | None
) -> CallStatus:
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    trailers = list(rpc_status.to_status(status).trailing_metadata)
    if retry_after_s is not None:
        # At least 1: on a pushback of 0 gRPC's C core never tries again, and the call hangs until its deadline.
        trailers.append((PUSHBACK_KEY, str(max(1, round(retry_after_s * 1000)))))
    return CallStatus(code=code, message=message, trailers=tuple(trailers))


def _bad_request(error: InvalidRequest, room_bytes: int) -> error_details_pb2.BadRequest:
    """Lists the violations, each shortened, until the room is used up; the last entry counts the rest."""
    bad_request = error_details_pb2.BadRequest()
    for position, violation in enumerate(error.violations):
        entry = error_details_pb2.BadRequest.FieldViolation(
            field=_shortened(violation.field, 256), description=_shortened(violation.description, 512)
        )
        if bad_request.ByteSize() + entry.ByteSize() + 64 > room_bytes:
            left_count = len(error.violations) - position
            bad_request.field_violations.add(field="", description=f"and {left_count} more violations")
            break
        bad_request.field_violations.append(entry)
    return bad_request


def _shortened(text: str, limit_bytes: int) -> str:
    encoded = text.encode("utf-8", errors="replace")
    if len(encoded) <= limit_bytes:
        return encoded.decode()
    return encoded[: limit_bytes - 3].decode(errors="ignore") + "…"
