"""The adapters that one engine holds, kept to what the router wants."""

import asyncio

from headrace.contract.engine import StepEngine
from headrace.contract.errors import HeadraceError, ShardLost, StartupError
from headrace.router.adapter_table import AdapterRecord, AdapterTable
from headrace.router.reporting import Report


class EngineAdapters:
    """Loads and drops adapters on one engine, from its connection to its loss."""

    def __init__(self, engine: StepEngine, table: AdapterTable, report: Report) -> None:
        self.digests: set[str] = set()
        """What the engine holds and sequences may ask for."""
        self._engine = engine
        self._table = table
        self._report = report
        # One order at a time, so that nothing is dropped that is being loaded.
        self._lock = asyncio.Lock()
        self._loading: set[asyncio.Task[None]] = set()

    async def load(self, record: AdapterRecord) -> None:
        """Loads an adapter and notes it in the table; see StepEngine.load_adapter.

        Whoever is cancelled here does not take the order back: it is carried out,
        and what nobody wants by then is dropped.
        """
        task = asyncio.ensure_future(self._load(record))
        self._loading.add(task)
        task.add_done_callback(self._end_load)
        await asyncio.shield(task)

    async def restore(self) -> None:
        """Loads all that requests may ask for. One that cannot be loaded is reported, and no request for it comes here.

        Raises:
            StartupError: the settings name it, and no engine could load it yet.
            ShardLost: the engine is gone.
        """
        tried: set[AdapterRecord] = set()
        # Looked up anew each time: an operator may load one meanwhile.
        while missing := [record for record in self._table.records if record not in tried and not self._has(record)]:
            tried.add(missing[0])
            await self._restore(missing[0])
        if self.digests - self._table.wanted_digests:  # taken back meanwhile
            self._table.unwanted.set()

    async def drop_unwanted(self) -> None:
        """Drops what nobody wants any more."""
        async with self._lock:
            for digest in sorted(self.digests - self._table.wanted_digests):
                self.digests.discard(digest)
                try:
                    await self._engine.unload_adapter(digest)
                except ShardLost:
                    return  # and with it all that it held

    async def _load(self, record: AdapterRecord) -> None:
        async with self._lock:
            loaded = await self._engine.load_adapter(record.order)
            self.digests.add(loaded.digest)
            self._table.note_loaded(record, loaded)
            if loaded.digest not in self._table.wanted_digests:
                self._table.unwanted.set()

    def _end_load(self, task: asyncio.Task[None]) -> None:
        self._loading.discard(task)
        if not task.cancelled():
            task.exception()  # the one who waited for it, if he still did, has it

    def _has(self, record: AdapterRecord) -> bool:
        return record.loaded is not None and record.loaded.digest in self.digests

    async def _restore(self, record: AdapterRecord) -> None:
        try:
            await self.load(record)
        except ShardLost:
            raise
        except HeadraceError as error:
            if record.loaded is None:
                raise StartupError(f"cannot load the adapter {record.name!r}: {error.message}") from error
            self._report("adapter_load_failed", adapter=record.name, detail=error.message)
