"""The calls that a server is answering: who they are, when the last one ends, and a way to end them."""

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass

from headrace.contract.errors import HeadraceError
from headrace.services.caller import ANYBODY, Caller
from headrace.services.log import bind_request

_CURRENT: ContextVar["Call"] = ContextVar("headrace_current_call")


@dataclass(slots=True, eq=False, kw_only=True)
class Call:
    """One call while its handler runs."""

    method: str
    """Full name, such as `/headrace.v1.GenerateService/GenerateStream`."""
    request_id: str
    is_observer: bool
    """Whether it only watches, so that a drain does not wait for it."""
    task: asyncio.Task[object]
    """The task that runs the handler."""
    caller: Caller = ANYBODY
    """Who calls, known when its key was checked."""
    message_count: int = 0
    """Messages sent by a streaming handler."""
    trace_parent: str = ""
    """The call's span, for those that belong to it; empty where nobody traces it."""
    ended_by: HeadraceError | None = None
    """Why the server ended it; None unless it did."""

    def rename(self, request_id: str) -> None:
        """Takes the id that the request itself carries in place of the one from the metadata."""
        self.request_id = request_id
        bind_request(request_id)

    def end(self, error: HeadraceError) -> None:
        """Makes the call end with an error, wherever its handler is. Safe to repeat."""
        if self.ended_by is None:
            self.ended_by = error
            self.task.cancel()


def current_call() -> Call:
    """Returns the call whose handler is running.

    Raises:
        LookupError: outside of a handler.
    """
    return _CURRENT.get()


class InFlightCalls:
    """Counts the calls of one server.

    `grpc.aio.Server.stop` does not wait for a handler whose status was sent, so
    a drain waits here.
    """

    def __init__(self) -> None:
        self._calls: set[Call] = set()
        self._awaited: set[Call] = set()
        self._changed = asyncio.Event()

    @property
    def count(self) -> int:
        """Calls that a drain waits for."""
        return len(self._awaited)

    def enter(self, call: Call) -> None:
        """Notes that a handler starts, and makes it the current call."""
        self._calls.add(call)
        if not call.is_observer:
            self._awaited.add(call)
        _CURRENT.set(call)

    def disown(self, call: Call) -> None:
        """Notes that the server has ended a call: its status is on the way, however slowly it is read."""
        self._awaited.discard(call)
        self._changed.set()

    def leave(self, call: Call) -> None:
        """Notes that a handler and all its clean-up have ended and that its status was sent."""
        self._calls.discard(call)
        self.disown(call)

    def end_all(self, error: HeadraceError) -> None:
        """Makes every call end with an error, but for those that only watch."""
        for call in self._calls:
            if not call.is_observer:
                call.end(error)

    def end_observers(self, error: HeadraceError) -> None:
        """Makes every call that only watches end with an error."""
        for call in self._calls:
            if call.is_observer:
                call.end(error)

    async def wait_idle(self) -> None:
        """Waits until no call is left that a drain waits for; one that arrives meanwhile is waited for, too."""
        while self._awaited:
            self._changed.clear()
            await self._changed.wait()

    async def wait_told(self, *, observers: bool) -> None:
        """Waits until every call has its status, of those that only watch or of the others."""
        while any(call.is_observer is observers for call in self._calls):
            self._changed.clear()
            await self._changed.wait()
