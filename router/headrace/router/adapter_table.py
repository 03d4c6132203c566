"""The adapters that requests may name: what each name stands for, who uses it, and when nobody does any more."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from headrace.contract.adapter import AdapterOrder, LoadedAdapter, check_adapter_name
from headrace.contract.errors import AdapterNotFound, DuplicateAdapter, InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter, as an operator sees it."""

    name: str
    source: str
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterStats:
    """How often adapters came and went since the start."""

    adapter_count: int = 0
    """Those that requests may name."""
    load_count: int = 0
    failed_load_count: int = 0
    unload_count: int = 0


class AdapterRecord:
    """One loading of one adapter."""

    __slots__ = ("is_named_at_start", "loaded", "name", "source", "user_count")

    def __init__(self, name: str, source: str, *, is_named_at_start: bool = False) -> None:
        self.name = name
        self.source = source
        self.is_named_at_start = is_named_at_start
        """Whether the settings name it: then there is no serving without it."""
        self.loaded: LoadedAdapter | None = None
        """What engines say of it; None until the first has loaded it."""
        self.user_count = 0

    @property
    def order(self) -> AdapterOrder:
        """What an engine is told."""
        return AdapterOrder(source=self.source, digest="" if self.loaded is None else self.loaded.digest)


class AdapterTable:
    """Names, and what they stand for. A name that is taken back stays alive for the requests that had it.

    Single-threaded, and without an await: what it says holds until the caller lets others run.
    """

    def __init__(self, named_at_start: Mapping[str, str] | None = None) -> None:
        """Takes the sources of the adapters that the settings name.

        Raises:
            InvalidRequest: a name will not do.
        """
        self._named: dict[str, AdapterRecord] = {}
        self._loading: dict[str, AdapterRecord] = {}
        self._closing: list[AdapterRecord] = []
        self._load_count = 0
        self._failed_load_count = 0
        self._unload_count = 0
        self.unwanted = asyncio.Event()
        """Set whenever engines may hold an adapter that nobody wants any more."""
        for name, source in (named_at_start or {}).items():
            check_adapter_name(name)
            self._named[name] = AdapterRecord(name, source, is_named_at_start=True)

    @property
    def records(self) -> tuple[AdapterRecord, ...]:
        """Everything that engines have to hold: what is named, and what requests still use."""
        return (*self._named.values(), *self._closing)

    @property
    def wanted_digests(self) -> set[str]:
        """What engines may hold: the above, and what is being loaded."""
        every = (*self.records, *self._loading.values())
        return {record.loaded.digest for record in every if record.loaded is not None}

    def adapters(self) -> list[Adapter]:
        """Returns those that requests may name, by name."""
        return [
            Adapter(name=record.name, source=record.source, rank=record.loaded.rank)
            for _, record in sorted(self._named.items())
            if record.loaded is not None
        ]

    def has(self, name: str) -> bool:
        """Returns whether requests may name an adapter."""
        record = self._named.get(name)
        return record is not None and record.loaded is not None

    def stats(self) -> AdapterStats:
        """Returns how often adapters came and went."""
        return AdapterStats(
            adapter_count=sum(record.loaded is not None for record in self._named.values()),
            load_count=self._load_count,
            failed_load_count=self._failed_load_count,
            unload_count=self._unload_count,
        )

    def begin(self, name: str, source: str) -> AdapterRecord:
        """Reserves a name for an adapter that is to be loaded. `publish` or `give_up` follows.

        Raises:
            InvalidRequest: the name will not do, or there is no source.
            DuplicateAdapter: the name is in use.
        """
        check_adapter_name(name)
        if not source:
            raise InvalidRequest.of("source", "must name a PEFT folder that every replica can read")
        if name in self._named or name in self._loading:
            raise DuplicateAdapter(f"an adapter {name!r} is loaded; unload it first", metadata={"adapter": name})
        record = self._loading[name] = AdapterRecord(name, source)
        return record

    def publish(self, record: AdapterRecord) -> None:
        """Lets requests name an adapter that every engine holds now."""
        self._named[record.name] = self._loading.pop(record.name)
        self._load_count += 1

    def give_up(self, record: AdapterRecord) -> None:
        """Forgets an adapter that could not be loaded everywhere."""
        del self._loading[record.name]
        self._failed_load_count += 1
        self.unwanted.set()

    def note_loaded(self, record: AdapterRecord, loaded: LoadedAdapter) -> None:
        """Keeps what the first engine says; the others have to load the same."""
        if record.loaded is None:
            record.loaded = loaded
            self._load_count += record.is_named_at_start

    def close(self, name: str) -> None:
        """Takes a name back; the requests that have it go on.

        Raises:
            AdapterNotFound: there is none.
        """
        record = self._find(name)
        del self._named[name]
        self._unload_count += 1
        if record.user_count:
            self._closing.append(record)
        else:
            self.unwanted.set()

    @contextmanager
    def use(self, name: str) -> Iterator[str]:
        """Keeps an adapter loaded and yields its digest; the empty name is the base model, whose digest is empty.

        Raises:
            AdapterNotFound: there is none.
        """
        if not name:
            yield ""
            return
        record = self._find(name)
        assert record.loaded is not None
        record.user_count += 1
        try:
            yield record.loaded.digest
        finally:
            record.user_count -= 1
            if record.user_count == 0 and record in self._closing:
                self._closing.remove(record)
                self.unwanted.set()

    def _find(self, name: str) -> AdapterRecord:
        record = self._named.get(name)
        if record is None or record.loaded is None:
            raise AdapterNotFound(f"no adapter {name!r} is loaded", metadata={"adapter": name})
        return record
