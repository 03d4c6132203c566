"""How a target, a channel's options and a call's arguments are made, and the service config that is shipped."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from headrace.client import ROUND_ROBIN_SERVICE_CONFIG_JSON, SERVICE_CONFIG_JSON
from headrace.client.channel import Connection
from headrace.v1 import embedding_service_pb2, generate_service_pb2, health_service_pb2, router_service_pb2

ROOT = Path(__file__).resolve().parents[3]
DEFAULTS: dict[str, Any] = {
    "deadline_s": 120.0,
    "wait_for_ready": False,
    "metadata": None,
    "credentials": None,
    "round_robin": None,
    "message_size_limit_bytes": 1024,
    "channel_options": (),
}


def connection(target: str | Sequence[str] = "127.0.0.1:50051", **changes: Any) -> Connection:
    return Connection.to(target, **{**DEFAULTS, **changes})


@pytest.mark.parametrize(
    ("target", "joined"),
    [
        ("127.0.0.1:50051", "127.0.0.1:50051"),
        ("dns:///router:50051", "dns:///router:50051"),
        (["router:50051"], "router:50051"),
        (["10.0.0.1:1", "10.0.0.2:2"], "ipv4:10.0.0.1:1,10.0.0.2:2"),
        (["[::1]:1", "[::2]:2"], "ipv6:[::1]:1,[::2]:2"),
    ],
)
def test_targets(target: str | list[str], joined: str) -> None:
    assert connection(target).target == joined


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (["10.0.0.1:1", "[::1]:1"], "all IPv4 or all IPv6"),
        (["router-1:1", "router-2:1"], "dns:///NAME:PORT"),
        (["10.0.0.1:1", "10.0.0.2:port"], "has no port"),
        ([], "there must be one"),
    ],
)
def test_addresses_that_cannot_be_taken_together(target: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        connection(target)


@pytest.mark.parametrize(
    ("target", "round_robin", "is_balanced"),
    [
        ("10.0.0.1:1", None, False),
        (["10.0.0.1:1"], None, False),
        (["10.0.0.1:1", "10.0.0.2:1"], None, True),
        (["10.0.0.1:1", "10.0.0.2:1"], False, False),
        ("dns:///router:1", True, True),
    ],
)
def test_only_several_addresses_take_turns_unless_told(
    target: str | list[str], round_robin: bool | None, is_balanced: bool
) -> None:
    config = dict(connection(target, round_robin=round_robin).channel_options)["grpc.service_config"]
    assert config == (ROUND_ROBIN_SERVICE_CONFIG_JSON if is_balanced else SERVICE_CONFIG_JSON)


def test_channel_options_are_bounded_and_the_callers_come_last() -> None:
    options = connection(channel_options=[("grpc.keepalive_time_ms", 60_000)]).channel_options
    assert options[-1] == ("grpc.keepalive_time_ms", 60_000)
    own = dict(options[:-1])
    assert own["grpc.max_send_message_length"] == own["grpc.max_receive_message_length"] == 1024
    assert own["grpc.per_rpc_retry_buffer_size"] == 1024
    assert own["grpc.keepalive_time_ms"] == 30_000


def test_a_call_takes_the_clients_defaults_unless_it_says_otherwise() -> None:
    client = connection(deadline_s=5.0, wait_for_ready=True, metadata={"Authorization": "Bearer x"})
    plain = client.call_arguments({}, "")
    assert (plain.timeout_s, plain.wait_for_ready) == (5.0, True)
    assert plain.metadata == (("authorization", "Bearer x"),)
    told = client.call_arguments({"deadline_s": None, "wait_for_ready": False, "metadata": {"a": "b"}}, "r-1")
    assert (told.timeout_s, told.wait_for_ready) == (None, False)
    assert told.metadata == (("x-request-id", "r-1"), ("authorization", "Bearer x"), ("a", "b"))


def test_an_id_that_cannot_be_a_header_is_left_to_the_server_to_refuse() -> None:
    assert connection().call_arguments({}, "r 1\n").metadata == ()


def test_the_shipped_file_is_the_config_that_the_clients_use() -> None:
    assert (ROOT / "clients" / "service_config.json").read_text() == SERVICE_CONFIG_JSON + "\n"


def test_the_service_config_names_methods_that_exist_and_repeats_nothing_with_an_effect() -> None:
    methods = {
        (service.full_name, method)
        for module in (embedding_service_pb2, generate_service_pb2, router_service_pb2, health_service_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods_by_name
    }
    (config,) = json.loads(SERVICE_CONFIG_JSON)["methodConfig"]
    covered: set[tuple[str, str]] = set()
    for name in config["name"]:
        found = {
            (service, method)
            for service, method in methods
            if service == name["service"] and name.get("method", method) == method
        }
        assert found, name
        covered |= found
    assert {method for _, method in methods - covered} == {
        "AddReplica",
        "RemoveReplica",
        "LoadAdapter",
        "UnloadAdapter",
    }
    assert config["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]


def test_the_balanced_config_only_adds_the_policy() -> None:
    balanced = json.loads(ROUND_ROBIN_SERVICE_CONFIG_JSON)
    assert balanced.pop("loadBalancingConfig") == [{"round_robin": {}}]
    assert balanced == json.loads(SERVICE_CONFIG_JSON)
