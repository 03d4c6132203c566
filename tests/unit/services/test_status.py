"""The table of statuses: complete, decodable by stock tools and small enough for HTTP/2."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from headrace.contract import errors
from headrace.contract.errors import FieldViolation, HeadraceError, InvalidRequest, QueueFull, ShardLost
from headrace.services import status
from headrace.services.status import CallStatus


def error_classes(root: type[HeadraceError] = HeadraceError) -> list[type[HeadraceError]]:
    # The client has errors of its own in the tree, which no server raises.
    children = [child for child in root.__subclasses__() if child.__module__ == errors.__name__]
    return [root, *(found for child in children for found in error_classes(child))]


def example(kind: type[HeadraceError]) -> HeadraceError:
    if kind is InvalidRequest:
        return InvalidRequest.of("sampling.top_p", "must be in (0, 1], got 2")
    if kind is errors.FeatureUnsupported:
        return errors.FeatureUnsupported("adapter", "the engine has none")
    return kind("what happened")


def details(call_status: CallStatus) -> status_pb2.Status:
    [encoded] = [value for key, value in call_status.trailers if key == "grpc-status-details-bin"]
    assert isinstance(encoded, bytes)
    return status_pb2.Status.FromString(encoded)


def error_info(call_status: CallStatus) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo()
    assert details(call_status).details[0].Unpack(info)
    return info


@pytest.mark.parametrize("kind", error_classes())
def test_every_class_has_a_row_and_an_error_info(kind: type[HeadraceError]) -> None:
    assert kind in status.CODES
    result = status.status_of(example(kind), request_id="r-1")
    info = error_info(result)
    assert (info.domain, info.reason, info.metadata["request_id"]) == ("headrace", kind.reason, "r-1")
    assert details(result).code == result.code.value[0]
    assert details(result).message == result.message
    assert result.code not in {grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN}


def test_the_table_names_no_class_outside_the_tree() -> None:
    assert set(status.CODES) == set(error_classes())


def test_a_lost_shard_invites_a_retry_only_before_the_first_token() -> None:
    assert status.code_of(ShardLost("gone")) is grpc.StatusCode.UNAVAILABLE
    assert status.code_of(ShardLost("gone", tokens_sent=True)) is grpc.StatusCode.ABORTED
    assert status.code_of(errors.Draining("bye")) is grpc.StatusCode.UNAVAILABLE
    assert status.code_of(errors.Draining("bye"), messages_sent=True) is grpc.StatusCode.ABORTED


def test_waiting_is_told_twice_in_details_and_as_a_pushback() -> None:
    result = status.status_of(QueueFull("full", retry_after_s=1.25), request_id="r")
    retry = error_details_pb2.RetryInfo()
    assert details(result).details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1250
    assert dict(result.trailers)["grpc-retry-pushback-ms"] == "1250"


def test_a_pushback_is_never_zero_on_which_grpc_hangs() -> None:
    result = status.status_of(QueueFull("full", retry_after_s=0.0), request_id="r")
    assert dict(result.trailers)["grpc-retry-pushback-ms"] == "1"


def test_no_pushback_where_waiting_does_not_help() -> None:
    result = status.status_of(QueueFull("full"), request_id="r")
    assert "grpc-retry-pushback-ms" not in dict(result.trailers)
    assert len(details(result).details) == 1


def test_violations_keep_their_paths() -> None:
    result = status.status_of(InvalidRequest.of("sampling.top_p", "must be in (0, 1], got 2"), request_id="r")
    bad_request = error_details_pb2.BadRequest()
    assert details(result).details[1].Unpack(bad_request)
    assert [(v.field, v.description) for v in bad_request.field_violations] == [
        ("sampling.top_p", "must be in (0, 1], got 2")
    ]


@pytest.mark.parametrize("filler", ["x", "é", "語"])
def test_trailers_stay_under_eight_kibibytes(filler: str) -> None:
    violations = [FieldViolation(f"chat.messages[{n}]", filler * 400) for n in range(500)]
    error = InvalidRequest(violations)
    error.metadata["limit"] = filler * 4000
    result = status.status_of(error, request_id="r" * 4000)
    sent_size = 3 * len(result.message.encode()) + sum(
        len(key) + (len(value) * 4 // 3 if isinstance(value, bytes) else len(value)) for key, value in result.trailers
    )
    assert sent_size < 8192
    bad_request = error_details_pb2.BadRequest()
    assert details(result).details[1].Unpack(bad_request)
    shown_count = len(bad_request.field_violations) - 1
    assert shown_count >= 1
    assert bad_request.field_violations[-1].description == f"and {500 - shown_count} more violations"


def test_a_bug_is_told_without_its_detail() -> None:
    result = status.internal_status(request_id="r-7")
    assert result.code is grpc.StatusCode.INTERNAL
    assert "r-7" in result.message
    assert error_info(result).reason == "INTERNAL"
