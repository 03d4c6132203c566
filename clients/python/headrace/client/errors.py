"""From a gRPC status back to the error that the server raised.

Every headrace server names its errors in `google.rpc.ErrorInfo`, so a client
raises the very class of `headrace.contract.errors` that the server did, with its
limits, field paths and waiting times. What carries no such name comes from
gRPC itself or from something between client and server, and is one of the
classes here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from headrace.contract import errors as contract
from headrace.contract.errors import FieldViolation, HeadraceError

ERROR_DOMAIN = "headrace"
"""`google.rpc.ErrorInfo.domain` of the servers' errors."""

STATUS_DETAILS_KEY = "grpc-status-details-bin"
"""Trailer with the details of a status, as a serialized `google.rpc.Status`."""

_CLASS_BY_REASON: Mapping[str, type[HeadraceError]] = {
    error.reason: error
    for error in vars(contract).values()
    if isinstance(error, type) and issubclass(error, HeadraceError)
}


class ServerStatusError(HeadraceError):
    """A call failed with a status whose reason this client does not know."""

    reason = "UNKNOWN_STATUS"

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, metadata=metadata, retry_after_s=retry_after_s)
        self.code = code
        """The gRPC status code."""
        self.reason = reason or code.name  # type: ignore[misc]  # here alone it is known only at run time

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


class ServerUnreachable(ServerStatusError):
    """There is no connection to a server: it cannot be reached, or it was lost during the call."""

    def __init__(self, target: str, message: str) -> None:
        super().__init__(grpc.StatusCode.UNAVAILABLE, message, metadata={"target": target})
        self.target = target
        """What the client was to connect to."""

    def __str__(self) -> str:
        return f"no connection to {self.target}: {self.message}"


class StreamBroken(HeadraceError):
    """A stream did not keep to the contract, such as ending well without `finished`."""

    reason = "STREAM_BROKEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusDetails:
    """What a status says beside its code and message."""

    reason: str = ""
    """Constant; empty if the error is not headrace's."""
    metadata: Mapping[str, str]
    violations: tuple[FieldViolation, ...] = ()
    retry_after_s: float | None = None


def status_code(error: BaseException) -> grpc.StatusCode | None:
    """Returns the gRPC status code that an error of this package arrived with; None if it never was a status."""
    cause = error.__cause__
    return cause.code() if isinstance(cause, grpc.RpcError) else None


def error_from_rpc(error: grpc.RpcError, target: str) -> HeadraceError:
    """Returns the error that a failed call stands for. Raise it from `error`."""
    # The stubs know neither that these are pairs nor that there may be none.
    trailers = cast("Iterable[tuple[str, str | bytes]] | None", error.trailing_metadata())
    return error_from_status(error.code(), error.details() or "", trailers or (), target)


def error_from_status(
    code: grpc.StatusCode, message: str, trailers: Iterable[tuple[str, str | bytes]], target: str
) -> HeadraceError:
    """Returns the error that a status stands for.

    A reason that the contract knows gives its class; else the code decides.
    """
    details = read_details(trailers)
    known = _CLASS_BY_REASON.get(details.reason)
    error = _from_code(code, message, target, details) if known is None else _rebuild(known, code, message, details)
    error.metadata.update(details.metadata)
    error.retry_after_s = details.retry_after_s
    return error


def read_details(trailers: Iterable[tuple[str, str | bytes]]) -> StatusDetails:
    """Returns what the trailers of a failed call say about it."""
    raw = next((value for key, value in trailers if key == STATUS_DETAILS_KEY), b"")
    try:
        return _parse_details(raw.encode() if isinstance(raw, str) else raw)
    except DecodeError:
        # A proxy's doing; the plain code and message still tell what happened.
        return StatusDetails(metadata={})


def _parse_details(raw: bytes) -> StatusDetails:
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry_info = error_details_pb2.RetryInfo()
    has_retry_info = False
    # Unpack leaves alone what is of another type.
    for detail in status_pb2.Status.FromString(raw).details:
        detail.Unpack(info)
        detail.Unpack(bad_request)
        has_retry_info |= detail.Unpack(retry_info)
    return StatusDetails(
        reason=info.reason if info.domain == ERROR_DOMAIN else "",
        metadata=dict(info.metadata),
        violations=tuple(FieldViolation(v.field, v.description) for v in bad_request.field_violations),
        retry_after_s=retry_info.retry_delay.ToNanoseconds() / 1e9 if has_retry_info else None,
    )


def _rebuild(error: type[HeadraceError], code: grpc.StatusCode, message: str, details: StatusDetails) -> HeadraceError:
    if issubclass(error, contract.InvalidRequest):
        # Without details the message is all there is; it must not get lost.
        return error(details.violations or (FieldViolation("", message),))
    if issubclass(error, contract.FeatureUnsupported):
        field = details.metadata.get("field", "")
        return error(field, message.removeprefix(f"{field}: "))
    if issubclass(error, contract.ShardLost):
        return error(message, tokens_sent=code is grpc.StatusCode.ABORTED)
    return error(message)


def _from_code(code: grpc.StatusCode, message: str, target: str, details: StatusDetails) -> HeadraceError:
    # A deadline usually passes here, before the server can say so.
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return contract.DeadlineExceeded(message)
    if code is grpc.StatusCode.UNAVAILABLE and not details.reason:
        return ServerUnreachable(target, message)
    return ServerStatusError(code, message, reason=details.reason)
