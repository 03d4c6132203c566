"""Loads adapters on every replica and unloads them, while requests go on."""

from headrace.contract.errors import FeatureUnsupported, HeadraceError, InvalidRequest, NotReady, ShardLost
from headrace.router.adapter_table import Adapter, AdapterRecord, AdapterTable
from headrace.router.replicas import RETRY_WHEN_NOT_READY_S, ReplicaSet
from headrace.router.reporting import Report


class AdapterDesk:
    """What an operator does with adapters. Use on one event loop."""

    def __init__(self, replicas: ReplicaSet, *, model_name: str, report: Report) -> None:
        self._replicas = replicas
        self._model_name = model_name
        self._report = report

    @property
    def table(self) -> AdapterTable:
        """What names stand for."""
        return self._replicas.adapters

    async def load(self, name: str, source: str) -> Adapter:
        """Loads an adapter on every connected replica; those that come later load it before they serve.

        Cancelling it, or a failure of one replica, leaves none behind.

        Raises:
            InvalidRequest: the name or the source will not do.
            DuplicateAdapter: the name is in use.
            AdaptersFull: a replica has no room.
            FeatureUnsupported: the engine has no adapters.
            NotReady: no replica is connected, or one was lost meanwhile.
        """
        self._check_supported()
        if name == self._model_name:
            raise InvalidRequest.of("name", f"must not be {name!r}, which names the model itself")
        record = self.table.begin(name, source)
        try:
            await self._load_everywhere(record)
        except BaseException as error:
            self.table.give_up(record)
            if isinstance(error, HeadraceError):
                self._report("adapter_load_failed", adapter=name, detail=error.message)
            raise
        self.table.publish(record)
        assert record.loaded is not None
        self._report("adapter_loaded", adapter=name, rank=record.loaded.rank, size_bytes=record.loaded.size_bytes)
        return Adapter(name=name, source=source, rank=record.loaded.rank)

    def unload(self, name: str) -> None:
        """Takes an adapter from requests to come; engines drop it when the last request that uses it has ended.

        Raises:
            AdapterNotFound: there is none of this name.
        """
        self.table.close(name)
        self._report("adapter_unloaded", adapter=name)

    async def _load_everywhere(self, record: AdapterRecord) -> None:
        # Looked up anew each time: a replica may come, or come back, while another one loads.
        while lacking := self._replicas.lacking_adapter(record.order.digest):
            try:
                await lacking[0].load_adapter(record)
            except ShardLost as error:
                raise NotReady(
                    f"a replica was lost while it loaded the adapter: {error.message}",
                    retry_after_s=RETRY_WHEN_NOT_READY_S,
                ) from error
        if record.loaded is None:
            raise NotReady("no replica is ready", retry_after_s=RETRY_WHEN_NOT_READY_S)

    def _check_supported(self) -> None:
        description = self._replicas.description
        if description is None:
            raise NotReady("no replica is ready", retry_after_s=RETRY_WHEN_NOT_READY_S)
        if "adapter" not in description.supported_fields:
            raise FeatureUnsupported("adapter", "the engine cannot load adapters")
