"""Turns settings by name into an engine's frozen options."""

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

from headrace.contract.errors import StartupError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

OptionValue = str | int | float | bool | None | tuple[int, ...]
"""What an option may be."""

Options = TypeVar("Options", bound="DataclassInstance")


def parse_options(options_type: type[Options], values: Mapping[str, OptionValue]) -> Options:
    """Returns options of a type, with its defaults for what is not given.

    Raises:
        StartupError: an option has an unknown name, a value is not of its type, or one without default is missing.
    """
    known = {field.name for field in fields(options_type)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise StartupError(f"unknown engine option {unknown[0]!r}; there are: {', '.join(sorted(known))}")
    try:
        return options_type(**values)
    except (TypeError, ValueError) as error:
        raise StartupError(f"engine options: {error}") from error
