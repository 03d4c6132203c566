"""A LoRA adapter, as the router orders it and as an engine has it."""

from dataclasses import dataclass


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
