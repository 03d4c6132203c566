"""A LoRA adapter, as the router orders it and as an engine has it."""

import re
from dataclasses import dataclass

from headrace.contract.errors import InvalidRequest

_NAME = re.compile(r"[A-Za-z0-9._/:-]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterOrder:
    """What an engine is told to load."""

    source: str
    """A PEFT folder that the engine can read."""
    digest: str = ""
    """What the adapter's files have to be, as `LoadedAdapter.digest`; empty while nobody knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedAdapter:
    """An adapter that an engine has."""

    digest: str
    """Names the adapter by the content of its files: equal digests mean equal weights. Sequences ask for it by this
    name, so neither an engine nor a cached block can be mistaken about what a reused name stood for."""
    rank: int
    """The largest rank of its matrices."""
    size_bytes: int
    """Memory that its weights take."""


def check_adapter_name(name: str) -> None:
    """Checks the name that requests will have for an adapter.

    Raises:
        InvalidRequest: it is empty, too long or has a character that names do not have.
    """
    if not _NAME.fullmatch(name):
        raise InvalidRequest.of("name", f"must be 1 to 128 letters, digits or any of ._/:-, is {name[:200]!r}")
