"""All replicas of the served model: where a request goes, and where it goes on when a replica is lost."""

import asyncio
from collections.abc import Iterable

from headrace.contract.clock import Clock
from headrace.contract.engine import EngineConnector, EngineDescription
from headrace.contract.errors import (
    DuplicateReplica,
    HeadraceError,
    NotReady,
    ReplicaBusy,
    ReplicaNotFound,
    ShardLost,
    StartupError,
)
from headrace.router.adapter_table import AdapterTable
from headrace.router.replica import Replica, ReplicaState, ReplicaStatus, SchedulingOptions
from headrace.router.reporting import Report
from headrace.router.running_request import RunningRequest

RETRY_WHEN_NOT_READY_S = 1.0
"""What callers are told while no replica serves; a restart takes seconds."""


class ReplicaSet:
    """Owns the replicas and the requests that wait for one to come back.

    A request is sent where the least work stands before its first token:
    prompt tokens that the replica's prefix cache lacks, tokens waiting there,
    and a token for each running sequence. So a cached prefix attracts its kin
    until the queue behind it costs more than computing the prefix elsewhere.

    Single-threaded: every method is called on the event loop that runs `run`.
    """

    def __init__(
        self,
        *,
        connector: EngineConnector,
        options: SchedulingOptions,
        vocabulary_size: int,
        replay_timeout_s: float,
        clock: Clock,
        report: Report,
        adapters: AdapterTable | None = None,
    ) -> None:
        self.adapters = adapters or AdapterTable()
        """What every replica has to hold before it serves."""
        self._connector = connector
        self._options = options
        self._vocabulary_size = vocabulary_size
        self._replay_timeout_s = replay_timeout_s
        self._clock = clock
        self._report = report
        self._replicas: dict[str, Replica] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._orphans: dict[RunningRequest, float] = {}
        """Requests whose replica was lost while none other served, and when that was, in seconds."""
        self._homes: dict[RunningRequest, Replica] = {}
        self.replay_count = 0
        """How often a request went on elsewhere, or again, after its replica was lost."""
        self._added_count = 0
        self._probe_count = 0
        self._description: EngineDescription | None = None
        self._version = 0
        self._changed = asyncio.Event()

    async def run(self, addresses: Iterable[tuple[str, ...]]) -> None:
        """Adds the first replicas and keeps all of them running until cancelled.

        A bug in a replica's loop ends this call with its exception: better a
        restarted router than one that looks well and answers nobody.
        """
        async with asyncio.TaskGroup() as group:
            self._group = group
            for group_addresses in addresses:
                self.add(group_addresses)
            await self._drop_unwanted_adapters()

    @property
    def description(self) -> EngineDescription | None:
        """What the engines are; None until one was reached."""
        return self._description

    @property
    def is_serving(self) -> bool:
        """Whether a new request has somewhere to go."""
        return any(replica.state is ReplicaState.SERVING for replica in self._replicas.values())

    @property
    def orphan_count(self) -> int:
        """Requests that lost their replica and wait for another."""
        return len(self._orphans)

    @property
    def version(self) -> int:
        """Rises whenever a replica was added, removed, lost or connected, or began to drain."""
        return self._version

    async def wait_changed(self, seen_version: int) -> None:
        """Waits until `version` is another than the one seen, so that no change is missed in between."""
        while self._version == seen_version:
            await self._changed.wait()

    def add(self, addresses: tuple[str, ...]) -> ReplicaStatus:
        """Adds a replica, which connects in the background.

        Raises:
            DuplicateReplica: one of the addresses belongs to a replica already.
        """
        taken = {address for replica in self._replicas.values() for address in replica.addresses}
        for address in addresses:
            if address in taken:
                raise DuplicateReplica(f"address {address} belongs to a replica already")
        assert self._group is not None, "run() starts the replicas"
        replica = Replica(
            replica_id=f"replica-{self._added_count}",
            addresses=addresses,
            connector=self._connector,
            accept=self._accept,
            options=self._options,
            adapters=self.adapters,
            clock=self._clock,
            report=self._report,
        )
        self._added_count += 1
        self._replicas[replica.id] = replica
        self._tasks[replica.id] = self._group.create_task(replica.run(self._adopt, self._orphan), name=replica.id)
        self._announce_change()
        return replica.status()

    def drain(self, replica_id: str) -> ReplicaStatus:
        """Gives a replica no new requests.

        Raises:
            ReplicaNotFound: there is none of this id.
        """
        replica = self._find(replica_id)
        replica.drain()
        self._announce_change()
        return replica.status()

    async def remove(self, replica_id: str) -> None:
        """Disconnects a replica; its requests go on elsewhere.

        Raises:
            ReplicaNotFound: there is none of this id.
            ReplicaBusy: it has requests and no other replica serves.
        """
        replica = self._find(replica_id)
        others = [other for other in self._serving() if other is not replica]
        if replica.request_count and not others:
            raise ReplicaBusy(f"{replica_id} runs {replica.request_count} requests that could go nowhere else")
        del self._replicas[replica_id]
        task = self._tasks.pop(replica_id)
        task.cancel()
        await asyncio.wait([task])
        self._orphan(replica.take_left_behind(), "the replica was removed")
        self._announce_change()

    def replicas(self) -> tuple[Replica, ...]:
        """Returns the replicas, in the order they were added."""
        return tuple(self._replicas.values())

    def lacking_adapter(self, digest: str) -> list[Replica]:
        """Returns those whose engine can take steps, draining or not, and does not hold an adapter."""
        return [replica for replica in self._connected() if not replica.has_adapter(digest)]

    def statuses(self) -> list[ReplicaStatus]:
        """Returns a snapshot of every replica, in the order they were added."""
        return [replica.status() for replica in self._replicas.values()]

    def next_probed(self) -> str:
        """Returns the id of each serving replica in turn.

        Raises:
            NotReady: no replica serves.
        """
        serving = self._serving()
        if not serving:
            raise NotReady("no replica is ready", retry_after_s=RETRY_WHEN_NOT_READY_S)
        self._probe_count += 1
        return serving[self._probe_count % len(serving)].id

    def flush_prefix_cache(self) -> int:
        """Forgets cached prefixes everywhere and returns how many blocks became free."""
        return sum(replica.flush_prefix_cache() for replica in self._replicas.values())

    def submit(self, active: RunningRequest, *, replica_id: str | None = None) -> None:
        """Sends a request to the best replica, or to the one asked for.

        Raises:
            NotReady: no replica serves.
            ReplicaNotFound: there is none of this id.
        """
        replica = self._choose(active) if replica_id is None else self._find(replica_id)
        replica.submit(active)
        self._homes[active] = replica

    def release(self, active: RunningRequest) -> None:
        """Drops a request wherever it is; its blocks are free before the next step. Safe for one that ended."""
        home = self._homes.pop(active, None)
        if self._orphans.pop(active, None) is None and home is not None:
            home.cancel(active)

    def _choose(self, active: RunningRequest) -> Replica:
        serving = self._serving()
        if not serving:
            raise NotReady("no replica is ready", retry_after_s=RETRY_WHEN_NOT_READY_S)
        if active.request.adapter:
            serving = [replica for replica in serving if replica.has_adapter(active.request.adapter)]
            if not serving:
                raise NotReady("no replica could load the adapter again", retry_after_s=RETRY_WHEN_NOT_READY_S)
        return serving[0] if len(serving) == 1 else min(serving, key=lambda replica: replica.cost_of(active))

    def _accept(self, description: EngineDescription) -> None:
        """Checks that an engine runs the model that this router speaks for."""
        if description.vocabulary_size < self._vocabulary_size:
            raise StartupError(
                f"the shard's vocabulary has {description.vocabulary_size} tokens, "
                f"the router's tokenizer {self._vocabulary_size}: they serve different models"
            )
        known = self._description
        if known is not None and known.architecture != description.architecture:
            raise StartupError(f"the shard runs {description.architecture}, the others {known.architecture}")
        self._description = description

    def _adopt(self, _replica: Replica) -> None:
        """Sends the requests that wait for a replica on when one came up."""
        self._announce_change()
        orphans, self._orphans = self._orphans, {}
        for active in orphans:
            self._replay(active)

    def _orphan(self, requests: list[RunningRequest], why: str) -> None:
        """Sends the requests of a lost replica elsewhere, or keeps them until one comes up."""
        self._announce_change()
        serving = self._serving()
        waiting = [active for active in requests if not active.has_ended]
        if serving:
            for active in waiting:
                self._replay(active)
        elif waiting:
            now_s = self._clock.now()
            self._orphans.update(dict.fromkeys(waiting, now_s))
            asyncio.get_running_loop().call_later(self._replay_timeout_s, self._give_up, now_s, why)

    def _replay(self, active: RunningRequest) -> None:
        """Sends a request to the best replica, or fails it if there is none for it."""
        try:
            replica = self._choose(active)
            self._report(
                "request_replayed",
                request_id=active.request.request_id,
                replica_id=replica.id,
                generated_token_count=active.generated_token_count,
            )
            self.replay_count += 1
            self._homes[active] = replica
            replica.submit(active)
        except HeadraceError as error:
            active.fail(error)

    async def _drop_unwanted_adapters(self) -> None:
        """Has the engines drop, for as long as there are any, what the last request has let go."""
        while True:
            await self.adapters.unwanted.wait()
            self.adapters.unwanted.clear()
            for replica in self._connected():
                await replica.drop_unwanted_adapters()

    def _give_up(self, orphaned_s: float, why: str) -> None:
        """Fails the requests that have waited for a replica since this moment."""
        for active in [active for active, since_s in self._orphans.items() if since_s <= orphaned_s]:
            del self._orphans[active]
            active.fail(
                ShardLost(
                    f"the model server was lost ({why}) and none came back within {self._replay_timeout_s:g} s",
                    tokens_sent=active.has_sent_tokens,
                    retry_after_s=RETRY_WHEN_NOT_READY_S,
                )
            )

    def _serving(self) -> list[Replica]:
        return [replica for replica in self._replicas.values() if replica.state is ReplicaState.SERVING]

    def _connected(self) -> list[Replica]:
        return [replica for replica in self._replicas.values() if replica.scheduler is not None]

    def _find(self, replica_id: str) -> Replica:
        try:
            return self._replicas[replica_id]
        except KeyError:
            raise ReplicaNotFound(f"no replica has the id {replica_id!r}") from None

    def _announce_change(self) -> None:
        self._version += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
