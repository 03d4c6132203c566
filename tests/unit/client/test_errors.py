"""A status becomes the very error that the server raised; what is not headrace's keeps its code."""

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from headrace.client import ServerStatusError, ServerUnreachable, status_code
from headrace.client.errors import error_from_rpc, error_from_status
from headrace.contract import errors
from headrace.contract.errors import FieldViolation, HeadraceError, InvalidRequest
from headrace.services.status import CallStatus, internal_status, status_of

TARGET = "127.0.0.1:1"
VIOLATIONS = (FieldViolation("sampling.top_p", "must be in (0, 1], got 2"), FieldViolation("", "and 2 more violations"))


def contract_classes(root: type[HeadraceError] = HeadraceError) -> Iterator[type[HeadraceError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from contract_classes(child)


def example(kind: type[HeadraceError]) -> HeadraceError:
    if kind is InvalidRequest:
        return InvalidRequest(VIOLATIONS)
    if kind is errors.FeatureUnsupported:
        return errors.FeatureUnsupported("sampling.min_p", "the engine has no min-p")
    if kind is errors.ShardLost:
        return errors.ShardLost("the shard died")
    return kind("what happened", metadata={"limit": "8"})


def received(status: CallStatus) -> HeadraceError:
    return error_from_status(status.code, status.message, status.trailers, TARGET)


def trailers(*details: Message) -> list[tuple[str, str | bytes]]:
    status = status_pb2.Status()
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return [("other", "x"), ("grpc-status-details-bin", status.SerializeToString())]


@pytest.mark.parametrize("kind", list(contract_classes()))
def test_every_class_of_the_contract_comes_back_as_itself(kind: type[HeadraceError]) -> None:
    raised = example(kind)
    raised.retry_after_s = 1.5
    error = received(status_of(raised, request_id="r-1"))
    assert type(error) is kind
    assert error.message == raised.message
    assert str(error) == str(raised)
    assert error.metadata == raised.metadata | {"request_id": "r-1"}
    assert error.retry_after_s == 1.5


def test_the_details_of_a_class_come_back() -> None:
    invalid = received(status_of(example(InvalidRequest), request_id="r"))
    assert isinstance(invalid, InvalidRequest)
    assert invalid.violations == VIOLATIONS
    unsupported = received(status_of(example(errors.FeatureUnsupported), request_id="r"))
    assert isinstance(unsupported, errors.FeatureUnsupported)
    assert unsupported.field == "sampling.min_p"


@pytest.mark.parametrize("tokens_sent", [False, True])
def test_whether_a_lost_shard_had_sent_tokens_comes_back(*, tokens_sent: bool) -> None:
    error = received(status_of(errors.ShardLost("gone", tokens_sent=tokens_sent), request_id="r"))
    assert isinstance(error, errors.ShardLost)
    assert error.tokens_sent is tokens_sent


def test_a_bug_of_the_server_names_the_request() -> None:
    error = received(internal_status(request_id="r-7"))
    assert type(error) is HeadraceError
    assert error.metadata == {"request_id": "r-7"}


def test_an_error_without_waiting_time_has_none() -> None:
    assert received(status_of(errors.QueueFull("full"), request_id="r")).retry_after_s is None


def test_a_reason_of_a_newer_server_keeps_what_it_says() -> None:
    info = error_details_pb2.ErrorInfo(reason="MOON_PHASE", domain="headrace", metadata={"phase": "full"})
    error = error_from_status(grpc.StatusCode.ABORTED, "not today", trailers(info), TARGET)
    assert isinstance(error, ServerStatusError)
    assert (error.code, error.message, error.reason) == (grpc.StatusCode.ABORTED, "not today", "MOON_PHASE")
    assert error.metadata == {"phase": "full"}
    assert str(error) == "ABORTED: not today"
    assert ServerStatusError.reason == "UNKNOWN_STATUS"


def test_a_reason_of_someone_else_is_not_taken_for_ours() -> None:
    info = error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="example.org")
    error = error_from_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "no", trailers(info), TARGET)
    assert type(error) is ServerStatusError
    assert error.reason == "RESOURCE_EXHAUSTED"


def test_unavailable_without_a_reason_is_a_lost_connection() -> None:
    error = error_from_status(grpc.StatusCode.UNAVAILABLE, "Connection refused", (), TARGET)
    assert isinstance(error, ServerUnreachable)
    assert str(error) == "no connection to 127.0.0.1:1: Connection refused"
    assert error.target == TARGET


def test_a_deadline_that_passed_on_this_side_is_the_same_error() -> None:
    error = error_from_status(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", (), TARGET)
    assert type(error) is errors.DeadlineExceeded


def test_invalid_request_without_details_keeps_its_message() -> None:
    info = error_details_pb2.ErrorInfo(reason="INVALID_REQUEST", domain="headrace")
    error = error_from_status(grpc.StatusCode.INVALID_ARGUMENT, "top_p is 2", trailers(info), TARGET)
    assert isinstance(error, InvalidRequest)
    assert str(error) == "top_p is 2"


@pytest.mark.parametrize("raw", [b"\xff\xff", "\xff text", b""])
def test_details_that_cannot_be_read_do_not_hide_the_status(raw: str | bytes) -> None:
    error = error_from_status(grpc.StatusCode.INTERNAL, "broken", [("grpc-status-details-bin", raw)], TARGET)
    assert type(error) is ServerStatusError
    assert error.message == "broken"


def test_a_detail_that_cannot_be_read_does_not_hide_the_status() -> None:
    status = status_pb2.Status()
    status.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")
    encoded: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", status.SerializeToString())]
    error = error_from_status(grpc.StatusCode.INTERNAL, "broken", encoded, TARGET)
    assert type(error) is ServerStatusError


def test_the_status_code_is_read_from_the_cause() -> None:
    cause = grpc.aio.AioRpcError(
        grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), grpc.aio.Metadata(), details="no such model"
    )
    error = error_from_rpc(cause, TARGET)
    assert status_code(error) is None
    error.__cause__ = cause
    assert status_code(error) is grpc.StatusCode.NOT_FOUND
    assert str(error) == "NOT_FOUND: no such model"


def test_a_failure_without_details_or_trailers() -> None:
    cause = grpc.aio.AioRpcError(grpc.StatusCode.UNKNOWN, grpc.aio.Metadata(), grpc.aio.Metadata())
    assert str(error_from_rpc(cause, TARGET)) == "UNKNOWN: "
