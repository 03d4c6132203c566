"""The public surface: both clients are alike, every RPC is there, and all of it is documented and exported."""

import inspect
import re
import typing
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor

import headrace.client
from headrace.client import AsyncClient, AsyncGenerationStream, Client, GenerationStream, calls
from headrace.client.calls import Call
from headrace.contract import errors
from headrace.v1 import embedding_service_pb2, generate_service_pb2, health_service_pb2, router_service_pb2

PAIRS = [(AsyncClient, Client), (AsyncGenerationStream, GenerationStream)]
SERVER_SIDE = {"PlanRejected", "StartupError"}


def public(kind: type) -> dict[str, Any]:
    return {name: inspect.getattr_static(kind, name) for name in dir(kind) if not name.startswith("_")}


def as_sync(annotation: object) -> object:
    if annotation is AsyncGenerationStream:
        return GenerationStream
    if typing.get_origin(annotation) is AsyncIterator:
        return Iterator[typing.get_args(annotation)]  # type: ignore[misc]  # only mypy needs to know it beforehand
    return annotation


@pytest.mark.parametrize(("asynchronous", "synchronous"), PAIRS)
def test_both_clients_have_the_same_methods(asynchronous: type, synchronous: type) -> None:
    assert public(asynchronous).keys() == public(synchronous).keys()
    for name, member in public(asynchronous).items():
        twin = getattr(synchronous, name)
        if not inspect.isfunction(member):
            continue
        assert member.__doc__ == twin.__doc__, name
        signature, twin_signature = inspect.signature(member), inspect.signature(twin)
        assert signature.parameters == twin_signature.parameters, name
        assert as_sync(signature.return_annotation) == twin_signature.return_annotation, name


def test_both_clients_are_made_alike() -> None:
    parameters = dict(inspect.signature(AsyncClient).parameters)
    del parameters["multiplexes"]  # what it saves, threads would spend on waking each other
    assert parameters == inspect.signature(Client).parameters
    told = re.sub(r" *multiplexes: .*?\n(?=            \w+:)", "", AsyncClient.__init__.__doc__ or "", flags=re.DOTALL)
    assert told == Client.__init__.__doc__


@pytest.mark.parametrize("name", headrace.client.__all__)
def test_everything_exported_is_there_and_documented(name: str) -> None:
    value = getattr(headrace.client, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__doc__
        for member_name, member in public(value).items() if inspect.isclass(value) else ():
            if inspect.isfunction(member) or isinstance(member, property):
                assert member.__doc__, f"{name}.{member_name}"


def test_every_error_that_a_caller_can_see_is_exported() -> None:
    expected = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.HeadraceError)
    }
    assert expected - set(headrace.client.__all__) == SERVER_SIDE


def methods() -> dict[str, MethodDescriptor]:
    services = [
        service
        for module in (embedding_service_pb2, generate_service_pb2, router_service_pb2, health_service_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
    ]
    return {
        f"/{service.full_name}/{method.name}": method
        for service in services
        for method in service.methods_by_name.values()
    }


EXAMPLES: dict[Callable[..., Call[Any, Any]], tuple[Any, ...]] = {
    calls.generate: ("Once", {}),
    calls.chat: ([], {}),
    calls.stream: ("Once", {}),
    calls.chat_stream: ([], {}),
    calls.embed: (["Once", [1, 2]], "mean", {}),
    calls.tokenize: ("Once", {}),
    calls.tokenize_chat: ([], {}),
    calls.get_model: ("m",),
    calls.watch_load: (1.0,),
    calls.add_replica: ("unix:x",),
    calls.drain_replica: ("r",),
    calls.remove_replica: ("r",),
    calls.abort: ("r",),
    calls.list_adapters: ("m",),
    calls.load_adapter: ("a", "s", "m"),
    calls.unload_adapter: ("a", "m"),
    calls.flush_prefix_cache: ("m",),
    calls.probe: ("r",),
}


def test_every_method_of_the_contract_has_a_call_with_its_types() -> None:
    made = [
        calls.detokenize([1], "m", include_special_tokens=None),
        *(make() for make in (calls.list_models, calls.get_load, calls.list_replicas, calls.get_health)),
        *(make(*arguments) for make, arguments in EXAMPLES.items()),
    ]
    for call in made:
        method = methods()[call.path]
        assert call.request.DESCRIPTOR is method.input_type
        assert call.response_type.DESCRIPTOR is method.output_type
    # What has no call of its own carries the streams of a client that multiplexes.
    assert {call.path for call in made} == set(methods()) - {calls.GENERATE_MULTIPLEXED}


def test_every_call_is_a_method_of_the_clients() -> None:
    own = [value for value in vars(calls).values() if inspect.isfunction(value) and value.__module__ == calls.__name__]
    makers = {value.__name__ for value in own if not value.__name__.startswith("_")}
    assert makers - {"serialize"} == set(public(Client)) - {"close", "target"}


def test_the_options_of_every_method_are_typed() -> None:
    for name, member in public(Client).items():
        if inspect.isfunction(member) and name != "close":
            hints = typing.get_type_hints(member, include_extras=True)
            assert typing.get_args(hints["options"])[0].__name__.endswith("Options"), name
