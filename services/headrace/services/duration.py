"""Durations as protobuf carries them."""

from google.protobuf import duration_pb2


def duration_to_proto(seconds: float) -> duration_pb2.Duration:
    """Returns a duration, rounded to nanoseconds; a negative one is zero."""
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(max(0, round(seconds * 1e9)))
    return duration
