"""The gRPC channel arguments of both ends, so that their limits fit each other."""

from dataclasses import dataclass

ChannelOptions = list[tuple[str, str | int]]

MIN_PING_INTERVAL_S = 5.0
"""Clients may ping this often; strictly below every interval that ours use, since equal ones end in GOAWAY."""

SHARD_PING_INTERVAL_S = 6.0
"""How long a silent shard connection is trusted. Data counts as a sign of life."""

SHARD_PING_TIMEOUT_S = 3.0
"""How long a shard may take to answer a ping. Its C core answers, however busy Python is."""

METADATA_SIZE_LIMIT_BYTES = 16 * 2**10
"""Of all headers of a call, as gRPC counts them. Keys, ids and traces take a few hundred bytes."""

SHARD_MESSAGE_SIZE_LIMIT_BYTES = 64 * 2**20
"""On both ends of the shard hop: a plan that admits many long prompts is larger than any message of a client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What a server grants its callers."""

    message_size_limit_bytes: int = 16 * 2**20
    """Largest message received or sent, in bytes."""
    connection_age_limit_s: float | None = None
    """Age at which clients are told to reconnect, so that they spread over new servers; None never."""
    connection_age_grace_s: float = 600.0
    """How long calls of an aged connection may go on."""


def server_options(limits: ServerLimits) -> ChannelOptions:
    """Returns the arguments of a server."""
    options: ChannelOptions = [
        *_message_limits(limits.message_size_limit_bytes),
        # Both alike: gRPC refuses at random between the two, and only above the second always.
        ("grpc.max_metadata_size", METADATA_SIZE_LIMIT_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_SIZE_LIMIT_BYTES),
        # Without this a second server silently shares the port.
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(MIN_PING_INTERVAL_S)),
    ]
    if limits.connection_age_limit_s is not None:
        options += [
            ("grpc.max_connection_age_ms", _milliseconds(limits.connection_age_limit_s)),
            ("grpc.max_connection_age_grace_ms", _milliseconds(limits.connection_age_grace_s)),
        ]
    return options


def shard_channel_options(message_size_limit_bytes: int, ping_timeout_s: float) -> ChannelOptions:
    """Returns the arguments of a router's channel to a shard."""
    return [
        *_message_limits(message_size_limit_bytes),
        ("grpc.keepalive_time_ms", _milliseconds(SHARD_PING_INTERVAL_S)),
        ("grpc.keepalive_timeout_ms", _milliseconds(ping_timeout_s)),
        ("grpc.keepalive_permit_without_calls", 1),
        # Any ping may be the one that goes unanswered; gRPC gives those of its own a minute.
        ("grpc.http2.ping_timeout_ms", _milliseconds(ping_timeout_s)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # A channel to a restarted shard must not inherit the waiting time of the one that was lost.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
        # Shards are local or reached directly; an HTTP proxy of the environment is for other traffic.
        ("grpc.enable_http_proxy", 0),
    ]


def _message_limits(limit_bytes: int) -> ChannelOptions:
    return [("grpc.max_receive_message_length", limit_bytes), ("grpc.max_send_message_length", limit_bytes)]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
