"""What many generations have to say at one time, joined to one message of the call that they share."""

import asyncio
from collections.abc import Callable, Coroutine

from headrace.contract.clock import Clock
from headrace.services.begun_write import BegunWrite
from headrace.services.in_flight import Call
from headrace.v1 import generate_service_pb2 as pb

JOINED_SIZE_LIMIT_BYTES = 256 * 2**10
"""Above which a message is taken apart, so that no event is refused for its company: gRPC bounds a message's size."""

Write = Callable[[pb.GenerateMultiplexedResponse], Coroutine[asyncio.Future[None], None, None]]
"""`ServicerContext.write` of the call."""


class JoinedWrite:
    """One message on its way: being filled, being written, or done. All whose events it holds share it."""

    __slots__ = ("_begun", "_error", "_is_done", "_when_begun", "message")

    def __init__(self) -> None:
        self.message = pb.GenerateMultiplexedResponse()
        self._begun: BegunWrite | None = None
        self._is_done = False
        self._error: Exception | None = None
        self._when_begun: list[Callable[[], None]] = []

    def begin(self, write: Write) -> None:
        """Begins to write; what that raises is told to everyone who asks."""
        try:
            self._begun = BegunWrite(_write_all(self.message, write))
        except Exception as error:  # noqa: BLE001  # it is the call's, and everyone on it shall know
            self._error = error
        waiting, self._when_begun = self._when_begun, []
        for notify in waiting:
            self.when_ready(notify)

    def is_done(self) -> bool:
        """Goes on as far as possible; returns whether that was to the end.

        Raises:
            Exception: whatever the write raised.
        """
        if self._error is not None:
            raise self._error
        if not self._is_done and self._begun is not None:
            try:
                self._is_done = self._begun.is_done()
            except Exception as error:
                self._error = error
                raise
        return self._is_done

    @property
    def is_waiting(self) -> bool:
        """Whether it is still to be filled, or written. Changes nothing."""
        if self._begun is None:
            return self._error is None
        return not self._is_done and self._begun.is_waiting

    def when_ready(self, notify: Callable[[], None]) -> None:
        """Calls `notify` once, when `is_done` can go on."""
        if self._begun is not None and self._begun.is_waiting:
            self._begun.when_ready(notify)
        elif self.is_waiting:
            self._when_begun.append(notify)
        else:
            asyncio.get_running_loop().call_soon(notify)

    def close(self) -> None:
        """Does nothing: the others' events are in the same message."""

    def give_up(self) -> None:
        """Gives it up for all."""
        if self._begun is not None:
            self._begun.close()

    async def wait(self) -> None:
        """Waits until it was written.

        Raises:
            Exception: as `is_done`.
        """
        while not self.is_done():
            ready = asyncio.Event()
            self.when_ready(ready.set)
            await ready.wait()


class Outbox:
    """Writes the events of one multiplexed call, one message at a time.

    Whatever comes until the event loop has had its turn, or until the message
    before was written, is one message.
    """

    def __init__(self, write: Write, call: Call, clock: Clock) -> None:
        self.call = call
        """The call that all share."""
        self._write = write
        self._clock = clock
        self._under_way: JoinedWrite | None = None
        self._writing_since_s = 0.0
        self._is_closed = False
        self._next: JoinedWrite | None = None
        """What is filled until it can be written."""

    @property
    def writing_since_s(self) -> float | None:
        """When the write that is under way began; None while none is."""
        return self._writing_since_s if self._under_way is not None and self._under_way.is_waiting else None

    def close(self) -> None:
        """Gives up what is not written. Call it when no generation is left."""
        self._is_closed = True
        if self._under_way is not None:
            self._under_way.give_up()

    def add(self, stream_id: int) -> tuple[pb.GenerationEvent, JoinedWrite]:
        """Adds an event to the next message; returns it, to be filled at once, and the write of that message."""
        joined = self._filled()
        event = joined.message.events.add()
        event.stream_id = stream_id
        return event, joined

    def announce_departure(self) -> None:
        """Tells the caller that the server is going away."""
        self._filled().message.is_going_away = True

    def _filled(self) -> JoinedWrite:
        """Returns what is being filled, and sees to it that it is written."""
        if self._next is None:
            self._next = JoinedWrite()
            asyncio.get_running_loop().call_soon(self._go_on)
        return self._next

    def _go_on(self) -> None:
        """Begins the next write, or arranges for being called when the one before is done."""
        if self._is_closed:
            return
        if self._under_way is not None and not _is_over(self._under_way):
            self._under_way.when_ready(self._go_on)
            return
        assert self._next is not None, "it is called for one"
        self._under_way, self._next = self._next, None
        self._writing_since_s = self._clock.now()
        self._under_way.begin(self._write)


def _is_over(joined: JoinedWrite) -> bool:
    try:
        return joined.is_done()
    except Exception:  # noqa: BLE001  # its generations learn of it; the writes that follow fail by themselves
        return True


def _write_all(message: pb.GenerateMultiplexedResponse, write: Write) -> Coroutine[asyncio.Future[None], None, None]:
    if message.ByteSize() <= JOINED_SIZE_LIMIT_BYTES or len(message.events) == 1:
        return write(message)

    async def write_each() -> None:
        for event in message.events:
            await write(pb.GenerateMultiplexedResponse(events=[event], is_going_away=message.is_going_away))

    async def wait() -> None:
        # A task, since a begun write only goes on when somebody asks.
        await asyncio.ensure_future(write_each())

    return wait()
