"""Turns the bytes of a call into its message, and says which field is to blame when that fails."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from google.protobuf import descriptor_pool, empty_pb2, unknown_fields
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from headrace.contract.errors import FieldViolation, InvalidRequest

Request = TypeVar("Request")


def decode_request(data: bytes, deserialize: Callable[[bytes], Request], method: str) -> Request:
    """Returns the request message of a call.

    gRPC itself would answer UNKNOWN with the name of a Python exception.

    Args:
        data: The message as it came.
        deserialize: Parses it.
        method: Full name of the gRPC method, such as `/headrace.v1.GenerateService/Generate`.

    Raises:
        InvalidRequest: the bytes are no such message, or a text in it is not UTF-8.
    """
    try:
        return deserialize(data)
    except DecodeError as error:
        service_name, _, method_name = method.removeprefix("/").partition("/")
        service = descriptor_pool.Default().FindServiceByName(service_name)
        message_type = service.FindMethodByName(method_name).input_type
        violations = list(_texts_that_are_not_utf8(data, message_type, ""))
        if violations:
            raise InvalidRequest(violations) from error
        raise InvalidRequest.of("", f"the bytes are no {message_type.full_name}") from error


def _texts_that_are_not_utf8(data: bytes, message_type: Descriptor, prefix: str) -> Iterator[FieldViolation]:
    """Walks the wire format: a message without fields keeps everything as unknown fields, unchecked."""
    try:
        found = unknown_fields.UnknownFieldSet(empty_pb2.Empty.FromString(data))
    except DecodeError:
        return
    seen_counts: dict[int, int] = {}
    for position in range(len(found)):
        entry = found[position]
        field = message_type.fields_by_number.get(entry.field_number)
        if field is None or not isinstance(entry.data, bytes):
            continue
        index = seen_counts.get(entry.field_number, 0)
        seen_counts[entry.field_number] = index + 1
        path = f"{prefix}{field.name}[{index}]" if field.is_repeated else f"{prefix}{field.name}"
        if field.message_type is not None:
            yield from _texts_that_are_not_utf8(entry.data, field.message_type, f"{path}.")
        elif field.type == FieldDescriptor.TYPE_STRING:
            try:
                entry.data.decode()
            except UnicodeDecodeError as error:
                yield FieldViolation(path, f"must be UTF-8; byte {error.start} is not")
