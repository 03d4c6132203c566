"""Turns settings by name into an engine's frozen options."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, TypeVar, get_type_hints

from headrace.contract.errors import StartupError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

OptionValue = str | int | float | bool
"""What an option may be. A string is read as whatever the option is, as environment variables need it."""

Options = TypeVar("Options", bound="DataclassInstance")

_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


def parse_options(options_type: type[Options], values: Mapping[str, OptionValue]) -> Options:
    """Returns options of a type, with its defaults for what is not given.

    Raises:
        StartupError: an option has an unknown name, a value is not of its type, or one without default is missing.
    """
    types = get_type_hints(options_type)
    unknown = sorted(set(values) - set(types))
    if unknown:
        raise StartupError(f"unknown engine option {unknown[0]!r}; there are: {', '.join(sorted(types))}")
    for field in fields(options_type):
        if field.default is MISSING and field.name not in values:
            raise StartupError(f"the engine option {field.name!r} is missing")
    return options_type(**{name: _convert(name, value, types[name]) for name, value in values.items()})


def _convert(name: str, value: OptionValue, wanted: type) -> OptionValue:
    if type(value) is wanted:
        return value
    if wanted is float and type(value) is int:
        return float(value)
    if isinstance(value, str):
        try:
            return _BOOLEANS[value.lower()] if wanted is bool else wanted(value)
        except (KeyError, ValueError):
            pass
    raise StartupError(f"engine option {name}: {value!r} is not of type {wanted.__name__}")
