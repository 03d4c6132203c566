"""The adapters that an engine holds, and the rows that use them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from headrace.contract.adapter import LoadedAdapter
from headrace.contract.errors import AdaptersFull, PlanRejected

Weights = TypeVar("Weights")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterLimits:
    """How much room there is for adapters."""

    count: int
    """Most adapters; 0 for none at all."""
    size_bytes: int
    """Most memory that their weights take together."""


class RowAdapters(Protocol):
    """Who uses which adapter, by the places of rows."""

    def check_loaded(self, sequence_id: int, digest: str) -> None:
        """Checks that a sequence may have an adapter.

        Raises:
            PlanRejected: it is not there.
        """
        ...

    def fill(self, place: int, digest: str) -> None:
        """Gives the row at a place an adapter, which is there."""
        ...

    def free(self, places: Iterable[int]) -> None:
        """Takes the adapters from the rows at places that have one."""
        ...

    def clear(self) -> None:
        """Forgets every adapter and every row."""
        ...


class AdapterRows(Generic[Weights]):
    """Keeps the weights of adapters for as long as sequences may ask for them or a row uses them."""

    def __init__(self, limits: AdapterLimits) -> None:
        self._limits = limits
        self._entries: dict[str, _Entry[Weights]] = {}
        """By digest: those that sequences may ask for."""
        self._leaving: list[_Entry[Weights]] = []
        """Those that only rows still use."""
        self._entry_of: dict[int, _Entry[Weights]] = {}
        """By the place of each row that has an adapter."""

    @property
    def is_idle(self) -> bool:
        """Whether no row of the batch has an adapter."""
        return not self._entry_of

    def add(self, loaded: LoadedAdapter, weights: Weights) -> LoadedAdapter:
        """Lets sequences ask for an adapter, unless they may already.

        Raises:
            AdaptersFull: there is no room beside those that are there.
        """
        if loaded.digest in self._entries:
            return self._entries[loaded.digest].loaded
        revived = next((entry for entry in self._leaving if entry.loaded.digest == loaded.digest), None)
        if revived is not None:
            self._leaving.remove(revived)
        else:
            self._check_room(loaded)
            revived = _Entry(loaded, weights)
        self._entries[loaded.digest] = revived
        return loaded

    def drop(self, digest: str) -> None:
        """Takes an adapter from sequences to come. Safe for one that is not there."""
        entry = self._entries.pop(digest, None)
        if entry is not None and entry.row_count:
            self._leaving.append(entry)

    def clear(self) -> None:
        """Forgets every adapter and every row."""
        self._entries.clear()
        self._leaving.clear()
        self._entry_of.clear()

    def check_loaded(self, sequence_id: int, digest: str) -> None:
        """Checks that a sequence may have an adapter.

        Raises:
            PlanRejected: it is not there.
        """
        if digest not in self._entries:
            raise PlanRejected(f"sequence {sequence_id}: the adapter {digest!r} is not loaded")

    def fill(self, place: int, digest: str) -> None:
        """Gives the row at a place an adapter, which is there."""
        entry = self._entry_of[place] = self._entries[digest]
        entry.row_count += 1

    def free(self, places: Iterable[int]) -> None:
        """Takes the adapters from the rows at places that have one."""
        for place in places:
            entry = self._entry_of.pop(place, None)
            if entry is None:
                continue
            entry.row_count -= 1
            if entry.row_count == 0 and entry in self._leaving:
                self._leaving.remove(entry)

    def select(self, places: NDArray[np.int64]) -> tuple[list[Weights], NDArray[np.int64]]:
        """Returns the different adapters of some rows, and for each row its index among them, -1 for none.

        The same adapters come in the same order, whichever rows have them.
        """
        entries = [self._entry_of.get(place) for place in places.tolist()]
        chosen = sorted({entry.loaded.digest: entry for entry in entries if entry is not None}.items())
        numbers = {digest: number for number, (digest, _) in enumerate(chosen)}
        indices = [-1 if entry is None else numbers[entry.loaded.digest] for entry in entries]
        return [entry.weights for _, entry in chosen], np.array(indices, dtype=np.int64)

    def _check_room(self, loaded: LoadedAdapter) -> None:
        held = (*self._entries.values(), *self._leaving)
        if len(held) >= self._limits.count:
            raise AdaptersFull(
                f"{len(held)} adapters are loaded and adapter_limit is {self._limits.count}; unload one, or raise it"
            )
        used_bytes = sum(entry.loaded.size_bytes for entry in held)
        if used_bytes + loaded.size_bytes > self._limits.size_bytes:
            raise AdaptersFull(
                f"the adapter takes {_mebibytes(loaded.size_bytes)} and {_mebibytes(used_bytes)} of"
                f" {_mebibytes(self._limits.size_bytes)} are in use; unload one, or raise adapter_memory"
            )


@dataclass(slots=True, eq=False)
class _Entry(Generic[Weights]):
    """An adapter that is in memory."""

    loaded: LoadedAdapter
    weights: Weights
    row_count: int = 0


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"
