"""Takes requests in and out: their ids, their places to wait, their clocks, and their way to the replicas."""

import asyncio
import itertools
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from headrace.contract.clock import Clock
from headrace.contract.errors import DeadlineExceeded, Draining, DuplicateRequest
from headrace.contract.generation import FinishReason, ValidRequest
from headrace.router.admission import Admission, Permit
from headrace.router.replicas import ReplicaSet
from headrace.router.request_meter import RequestMeter
from headrace.router.running_request import RunningRequest
from headrace.router.sequence import Sequence
from headrace.router.tenant_quota import TenantPass, TenantQuotas


class FrontDesk:
    """Knows every request that is here. Use on one event loop."""

    def __init__(
        self, *, admission: Admission, replicas: ReplicaSet, clock: Clock, new_request_id: Callable[[], str]
    ) -> None:
        self.admission = admission
        self.replicas = replicas
        self.clock = clock
        self.meter = RequestMeter(clock)
        """For reading, but for the pipelines."""
        self.quotas = TenantQuotas(clock)
        """What tenants may use."""
        self._new_request_id = new_request_id
        self._sequence_ids = itertools.count(1)
        self._visits: dict[str, Visit] = {}
        self._refusal: Draining | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def request_count(self) -> int:
        """Requests between their arrival and their end."""
        return len(self._visits)

    @property
    def is_refusing(self) -> bool:
        """Whether new requests are refused."""
        return self._refusal is not None

    def refuse_new(self, refusal: Draining) -> None:
        """Answers every later request with `refusal`; those that are here go on."""
        self._refusal = refusal

    def check_open(self) -> None:
        """Checks that new requests are taken.

        Raises:
            Draining: they are refused.
        """
        if self._refusal is not None:
            raise self._refusal

    async def wait_idle(self) -> None:
        """Waits until no request is left."""
        await self._idle.wait()

    def abort(self, request_ids: Iterable[str], *, tenant: str | None = None) -> list[str]:
        """Ends requests early and returns the ids of those that were here. Safe to repeat.

        With a `tenant`, requests of others are as if they were not here.
        """
        visits = [self._visits.get(request_id) for request_id in request_ids]
        return [
            visit.request_id
            for visit in visits
            if visit is not None and tenant in (None, visit.tenant) and visit.abort()
        ]

    def open(self, wanted_id: str, tenant: str | None = None) -> "Visit":
        """Takes a request in, under the id that it wants or a new one. Use the result as a context manager.

        Args:
            wanted_id: what the caller wants to call it; empty leaves that to us.
            tenant: whose it is; None for one of ours, which has no limits.

        Raises:
            DuplicateRequest: the id is in use.
            QuotaExceeded: the tenant has reached a limit.
        """
        request_id = wanted_id or self._new_request_id()
        if request_id in self._visits:
            raise DuplicateRequest(
                f"a request with the id {request_id!r} is running", metadata={"request_id": request_id}
            )
        quota = None if tenant is None else self.quotas.enter(tenant)
        visit = self._visits[request_id] = Visit(self, request_id, tenant, quota)
        self._idle.clear()
        return visit

    def close(self, visit: "Visit") -> None:
        """Lets a request go; its id is free again."""
        del self._visits[visit.request_id]
        if not self._visits:
            self._idle.set()

    def new_sequence(self, request: ValidRequest, arrival_s: float, received_s: float | None = None) -> Sequence:
        """Returns a sequence with an id of its own."""
        return Sequence(
            sequence_id=next(self._sequence_ids), request=request, arrival_s=arrival_s, received_s=received_s
        )


class Visit:
    """One call, from its arrival to its end. Leaving it gives everything back: id, places, timers, KV blocks."""

    def __init__(self, desk: FrontDesk, request_id: str, tenant: str | None, quota: TenantPass | None) -> None:
        self.request_id = request_id
        self.tenant = tenant
        self._quota = quota
        self.permit: Permit | None = None
        """Its places in the waiting room."""
        self._desk = desk
        self._running: list[RunningRequest] = []
        self._timers: list[asyncio.TimerHandle] = []
        self._is_aborted = False

    def enter(self, place_count: int) -> None:
        """Takes places in the waiting room.

        Raises:
            QueueFull: there are not so many.
        """
        self.permit = self._desk.admission.enter(place_count, tenant=self.tenant or "")

    def charge(self, token_count: int) -> None:
        """Books the tokens of its prompts, which the tenant is charged for even if there is no room for them.

        Raises:
            QueueFull: they do not fit beside those that wait.
        """
        if self._quota is not None:
            self._quota.charge(token_count)
        if self.permit is not None:
            self.permit.charge(token_count)

    def submit(self, active: RunningRequest, *, replica_id: str | None = None) -> None:
        """Sends a request to a replica, the best one unless told, and watches its time.

        Raises:
            NotReady: no replica serves.
            ReplicaNotFound: there is none of this id.
        """
        self._running.append(active)
        if self._quota is not None:
            self._quota.watch(active)
        if self._is_aborted:
            active.finish(FinishReason.CANCELLED, self._desk.clock.now())
            return
        self._set_timers(active)
        self._desk.replicas.submit(active, replica_id=replica_id)

    def abort(self) -> bool:
        """Ends what runs, and at once what is submitted later. Returns whether there was something to end."""
        running = [active for active in self._running if not active.has_ended]
        if self._running and not running:
            return False
        self._is_aborted = True
        for active in running:
            self._finish(active, FinishReason.CANCELLED)
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for timer in self._timers:
            timer.cancel()
        for active in self._running:
            self._desk.replicas.release(active)
        if self.permit is not None:
            self.permit.release()
        if self._quota is not None:
            self._quota.leave()
        self._desk.close(self)

    def _set_timers(self, active: RunningRequest) -> None:
        """Ends a request in time even when no step runs: in the queue, or while its replica is being restarted."""
        loop = asyncio.get_running_loop()
        deadline_s, time_limit_s = active.request.deadline_s, active.request.text_stop.time_limit_s
        if deadline_s is not None:
            self._timers.append(loop.call_later(deadline_s - self._desk.clock.now(), self._expire, active))
        if time_limit_s is not None:
            self._timers.append(loop.call_later(time_limit_s, self._finish, active, FinishReason.TIME_LIMIT))

    def _expire(self, active: RunningRequest) -> None:
        active.fail(DeadlineExceeded("the deadline passed"))
        self._desk.replicas.release(active)

    def _finish(self, active: RunningRequest, reason: FinishReason) -> None:
        """Ends a request from outside of its step loop; what was generated is kept."""
        active.finish(reason, self._desk.clock.now())
        self._desk.replicas.release(active)
