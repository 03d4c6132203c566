"""How a client reaches its servers: the target, the channel's options and the defaults of every call."""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import grpc
from google.protobuf.message import Message

from headrace.client.options import CallOptions
from headrace.client.service_config import ROUND_ROBIN_SERVICE_CONFIG_JSON, SERVICE_CONFIG_JSON
from headrace.client.tls import Tls

if TYPE_CHECKING:  # imports of OpenTelemetry, which only some callers have
    from opentelemetry.trace import TracerProvider

    from headrace.client.tracing import ClientSpan, ClientTracer

DEFAULT_TARGET = "127.0.0.1:50051"
DEFAULT_DEADLINE_S = 120.0
DEFAULT_MESSAGE_SIZE_LIMIT_BYTES = 16 * 1024 * 1024
"""As a headrace server's."""

_HEADER_VALUE = re.compile("[!-~]+")

ChannelOption = tuple[str, str | int]
"""An argument of gRPC's core, such as `("grpc.keepalive_time_ms", 60_000)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallArguments:
    """What gRPC takes beside a request."""

    timeout_s: float | None
    metadata: tuple[tuple[str, str], ...]
    wait_for_ready: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Everything that a channel and its calls need to know; opening it is up to the client."""

    target: str
    """As gRPC's name resolution takes it."""
    channel_options: tuple[ChannelOption, ...]
    credentials: grpc.ChannelCredentials | None
    """None sends in plain text."""
    deadline_s: float | None
    wait_for_ready: bool
    metadata: tuple[tuple[str, str], ...] = field(repr=False)
    """Not shown: it may hold a key."""
    tracer: "ClientTracer | None" = None
    """Traces the calls, if the caller gave the client what to trace them with."""

    @classmethod
    def to(
        cls,
        target: str | Sequence[str],
        *,
        deadline_s: float | None,
        wait_for_ready: bool,
        metadata: Mapping[str, str] | None,
        credentials: grpc.ChannelCredentials | None,
        round_robin: bool | None,
        message_size_limit_bytes: int,
        channel_options: Sequence[ChannelOption],
        tls: Tls | None = None,
        key: str = "",
        tracer_provider: "TracerProvider | None" = None,
    ) -> Self:
        """Returns the connection that the keywords of a client describe.

        Raises:
            OSError: a file of `tls` cannot be read.
            ValueError: several addresses are given that gRPC cannot take together, `tls` stands beside
                `credentials`, or `key` cannot be one.
        """
        if tls is not None and credentials is not None:
            raise ValueError("tls and credentials say the same thing; give one of them")
        addresses = (target,) if isinstance(target, str) else tuple(target)
        is_balanced = len(addresses) > 1 if round_robin is None else round_robin
        joined = _join(addresses)
        return cls(
            target=joined,
            channel_options=(
                *_own_options(message_size_limit_bytes, is_balanced=is_balanced),
                *(tls.channel_options() if tls else ()),
                *channel_options,
            ),
            credentials=tls.credentials() if tls else credentials,
            deadline_s=deadline_s,
            wait_for_ready=wait_for_ready,
            metadata=(*_bearer(key), *_headers(metadata)),
            tracer=None if tracer_provider is None else _tracer(tracer_provider, joined),
        )

    @property
    def retries(self) -> bool:
        """Whether what a server did not admit is tried again."""
        return ("grpc.enable_retries", 0) not in self.channel_options

    def begin_span(self, path: str, request: Message) -> "ClientSpan | None":
        """Returns the span of a call; None if calls are not traced."""
        return None if self.tracer is None else self.tracer.begin(path, request)

    def call_arguments(self, options: CallOptions, request_id: str, span: "ClientSpan | None" = None) -> CallArguments:
        """Returns what a call with these options hands to gRPC."""
        traced = () if span is None else span.headers
        # The server logs each call, of whatever outcome, under this header. It judges an id that cannot be one.
        named = (("x-request-id", request_id),) if _HEADER_VALUE.fullmatch(request_id) else ()
        return CallArguments(
            timeout_s=options.get("deadline_s", self.deadline_s),
            metadata=(*named, *self.metadata, *_headers(options.get("metadata")), *traced),
            wait_for_ready=options.get("wait_for_ready", self.wait_for_ready),
        )


def _tracer(provider: "TracerProvider", target: str) -> "ClientTracer":
    from headrace.client.tracing import ClientTracer  # noqa: PLC0415  # see above

    return ClientTracer(provider, target)


def _own_options(message_size_limit_bytes: int, *, is_balanced: bool) -> tuple[ChannelOption, ...]:
    return (
        ("grpc.service_config", ROUND_ROBIN_SERVICE_CONFIG_JSON if is_balanced else SERVICE_CONFIG_JSON),
        ("grpc.max_send_message_length", message_size_limit_bytes),
        ("grpc.max_receive_message_length", message_size_limit_bytes),
        # gRPC keeps a request to send it again, and silently gives up retries for one larger than this.
        # Its own 256 KiB are less than a long prompt.
        ("grpc.per_rpc_retry_buffer_size", message_size_limit_bytes),
        # A dead peer is noticed within 40 s, during a long prefill too, in which no data flows.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # Any ping may be the one that goes unanswered; gRPC gives those of its own a minute.
        ("grpc.http2.ping_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.primary_user_agent", "headrace-python"),
    )


def _headers(metadata: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    # HTTP/2 wants lower case, and gRPC refuses anything else.
    return tuple((key.lower(), value) for key, value in (metadata or {}).items())


def _bearer(key: str) -> tuple[tuple[str, str], ...]:
    if key and not _HEADER_VALUE.fullmatch(key):
        raise ValueError("the key has characters that a header cannot carry; is there a line break at its end?")
    return (("authorization", f"Bearer {key}"),) if key else ()


def _join(addresses: Sequence[str]) -> str:
    """Returns one target for gRPC, which takes several addresses of one IP version but only one name."""
    if len(addresses) == 1:
        return addresses[0]
    versions = {_ip_version(address) for address in addresses}
    if len(versions) != 1:
        raise ValueError(f"several addresses must be all IPv4 or all IPv6, and there must be one: {list(addresses)}")
    return f"ipv{versions.pop()}:{','.join(addresses)}"


def _ip_version(address: str) -> int:
    host, _, port = address.rpartition(":")
    try:
        version = ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).version
    except ValueError as error:
        raise ValueError(
            f"{address!r} is not IP:PORT, and several addresses must be. "
            "For several servers behind one name use dns:///NAME:PORT with round_robin=True"
        ) from error
    if not port.isdecimal():
        raise ValueError(f"{address!r} has no port")
    return version
