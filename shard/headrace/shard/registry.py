"""Engines by name. An engine's module is imported only when the engine is asked for."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import cast

from headrace.contract.errors import StartupError
from headrace.shard.engine import Engine
from headrace.shard.options import OptionValue

EngineFactory = Callable[[Mapping[str, OptionValue], Callable[[str], None]], Engine]

_FACTORIES = {
    "fake": "headrace.shard.engines.fake:create_fake_engine",
    "native": "headrace.shard.engines.native:create_native_engine",
}


def engine_names() -> tuple[str, ...]:
    """Returns the names that `create_engine` takes."""
    return tuple(_FACTORIES)


def create_engine(
    name: str, options: Mapping[str, OptionValue], progress: Callable[[str], None] = lambda _: None
) -> Engine:
    """Loads an engine; blocks until it can take steps.

    Args:
        name: One of `engine_names()`.
        options: The engine's options by name.
        progress: Told, now and then, what the engine is doing.

    Raises:
        StartupError: there is no such engine, an option is wrong, or the engine cannot start.
    """
    target = _FACTORIES.get(name)
    if target is None:
        raise StartupError(f"unknown engine {name!r}; there are: {', '.join(_FACTORIES)}")
    module_name, _, factory_name = target.partition(":")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise StartupError(f"engine {name!r} needs the package {error.name!r}: install headrace[shard]") from error
    factory = cast("EngineFactory", getattr(module, factory_name))
    return factory(options, progress)
