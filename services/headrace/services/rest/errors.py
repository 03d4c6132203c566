"""Maps every error to an HTTP status and to the words that each protocol has for it: the one table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from headrace.client.errors import ServerStatusError, ServerUnreachable, StreamBroken
from headrace.contract.errors import (
    AdapterNotFound,
    DeadlineExceeded,
    Draining,
    DuplicateRequest,
    FeatureUnsupported,
    FieldViolation,
    Forbidden,
    HeadraceError,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    QueueFull,
    QuotaExceeded,
    ReaderStalled,
    RequestAborted,
    RequestError,
    RequestRefused,
    RowFailed,
    ShardLost,
    Unauthenticated,
)
from headrace.services.rest.field_naming import field_name, in_callers_words


class HttpProblem(RequestError):
    """Something is wrong with a request before its content is understood."""

    reason = "HTTP_PROBLEM"

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class ErrorWords:
    """How the protocols put one error."""

    status: int
    """HTTP status in OpenAI's and Anthropic's protocol."""
    openai_type: str
    tgi_status: int
    tgi_type: str
    anthropic_type: str


_INVALID = "invalid_request_error"
_UNAVAILABLE = ErrorWords(503, "service_unavailable_error", 503, "unavailable", "api_error")
_OVERLOADED = ErrorWords(429, "rate_limit_error", 429, "overloaded", "rate_limit_error")
_INTERNAL = ErrorWords(500, "server_error", 500, "internal", "api_error")
_MISSING = ErrorWords(404, _INVALID, 404, "not_found", "not_found_error")

TABLE: Mapping[type[HeadraceError], ErrorWords] = {
    HeadraceError: _INTERNAL,
    RequestError: ErrorWords(400, _INVALID, 422, "validation", _INVALID),
    InvalidRequest: ErrorWords(400, _INVALID, 422, "validation", _INVALID),
    FeatureUnsupported: ErrorWords(400, _INVALID, 422, "validation", _INVALID),
    ModelNotFound: _MISSING,
    AdapterNotFound: _MISSING,
    DuplicateRequest: ErrorWords(409, _INVALID, 409, "duplicate", _INVALID),
    Unauthenticated: ErrorWords(401, "authentication_error", 401, "unauthenticated", "authentication_error"),
    Forbidden: ErrorWords(403, "permission_error", 403, "forbidden", "permission_error"),
    RequestRefused: ErrorWords(422, _INVALID, 424, "generation", _INVALID),
    DeadlineExceeded: ErrorWords(504, "timeout_error", 504, "timeout", "timeout_error"),
    RequestAborted: ErrorWords(409, "aborted_error", 409, "aborted", "api_error"),
    ReaderStalled: ErrorWords(408, "timeout_error", 408, "timeout", "timeout_error"),
    QueueFull: _OVERLOADED,
    QuotaExceeded: _OVERLOADED,
    NotReady: _UNAVAILABLE,
    Draining: _UNAVAILABLE,
    ShardLost: _UNAVAILABLE,
    ServerUnreachable: _UNAVAILABLE,
    RowFailed: ErrorWords(500, "server_error", 424, "generation", "api_error"),
    ServerStatusError: ErrorWords(502, "server_error", 502, "upstream", "api_error"),
    StreamBroken: ErrorWords(502, "server_error", 500, "incomplete_generation", "api_error"),
}
"""Words of each class; a subclass that is not listed has those of its parent."""

_TOO_SLOW = 408
_HTTP_STATUSES = (400, 404, 405, _TOO_SLOW, 413, 415)
"""What may be wrong with a request before its content is understood."""

_HTTP_TYPES = {404: "not_found_error", 413: "request_too_large"}


def words_of(error: HeadraceError) -> ErrorWords:
    """Returns how the protocols put an error."""
    if isinstance(error, HttpProblem):
        anthropic_type = _HTTP_TYPES.get(error.status, _INVALID)
        return ErrorWords(error.status, _INVALID, error.status, "validation", anthropic_type)
    return next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)


def statuses_of(status: Callable[[ErrorWords], int]) -> dict[int, str]:
    """Returns the statuses of a protocol, each with the reasons that it stands for."""
    reasons: dict[int, list[str]] = {}
    for kind, words in TABLE.items():
        reasons.setdefault(status(words), []).append(kind.reason)
    for number in _HTTP_STATUSES:
        reasons.setdefault(number, []).append(HttpProblem.reason)
    return {number: ", ".join(dict.fromkeys(reasons[number])) for number in sorted(reasons)}


def violations_of(error: HeadraceError, names: Mapping[str, str]) -> tuple[FieldViolation, ...]:
    """Returns what is wrong with which field, by the names that a protocol has for fields of `headrace.v1`."""
    if isinstance(error, InvalidRequest):
        return tuple(
            FieldViolation(field_name(v.field, names), in_callers_words(v.description, names)) for v in error.violations
        )
    if isinstance(error, FeatureUnsupported):
        description = error.message.removeprefix(f"{error.field}: ")
        return (FieldViolation(field_name(error.field, names), in_callers_words(description, names)),)
    return ()


def message_of(error: HeadraceError, names: Mapping[str, str]) -> str:
    """Returns the text of an error in the words of a protocol."""
    violations = violations_of(error, names)
    if not violations:
        return in_callers_words(str(error), names)
    return "; ".join(f"{v.field}: {v.description}" if v.field else v.description for v in violations)


def advice_of(error: HeadraceError) -> dict[str, str]:
    """Returns the headers that tell the caller what to do about an error: when to come back, or what to show.

    A time is in whole seconds, at least one, since a zero means at once.
    """
    if isinstance(error, HttpProblem) and error.status == _TOO_SLOW:
        # What is left of the body is not waited for.
        return {"connection": "close"}
    if isinstance(error, Unauthenticated):
        return {"www-authenticate": "Bearer"}
    if error.retry_after_s is None:
        return {}
    return {"retry-after": str(max(1, -int(-error.retry_after_s // 1)))}
