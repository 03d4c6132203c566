"""Writes the events of many requests to their calls, all that is new in one turn of the event loop."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Protocol

from headrace.contract.clock import Clock
from headrace.contract.generation import GenerationEvent, GenerationFinished
from headrace.router.output_stream import OutputStream
from headrace.services.begun_write import BegunWrite
from headrace.services.convert_event import event_to_proto
from headrace.services.in_flight import Call
from headrace.v1 import generate_service_pb2 as pb

Write = Callable[[pb.GenerateStreamResponse], Coroutine[asyncio.Future[None], None, None]]
"""`ServicerContext.write` of a call."""


class BegunWriting(Protocol):
    """A message that is being written; see `BegunWrite`, which is one."""

    def is_done(self) -> bool:
        """Goes on as far as possible; returns whether that was to the end. Raises what the write raises."""
        ...

    @property
    def is_waiting(self) -> bool:
        """Whether what it waits for has not happened. Changes nothing."""
        ...

    def when_ready(self, notify: Callable[[], None]) -> None:
        """Calls `notify` once, from the event loop, when `is_done` can go on."""
        ...

    def close(self) -> None:
        """Gives it up. Safe to repeat and when it is done."""
        ...


class MessageSink(Protocol):
    """Where the messages of one generation go: a call of its own, or one that several share."""

    def prepare(self, event: GenerationEvent) -> None:
        """Makes the next message."""
        ...

    def begin(self) -> BegunWriting:
        """Begins to write what was prepared."""
        ...


class CallSink:
    """Writes to a call of its own."""

    __slots__ = ("_message", "_write")

    def __init__(self, write: Write) -> None:
        self._write = write
        self._message: pb.GenerateStreamResponse | None = None

    def prepare(self, event: GenerationEvent) -> None:
        """Makes the next message."""
        self._message = event_to_proto(event)

    def begin(self) -> BegunWrite:
        """Begins to write it."""
        assert self._message is not None, "it was prepared"
        return BegunWrite(self._write(self._message))


class WriteRound:
    """The writers that have something to do, for one callback of the event loop."""

    def __init__(self) -> None:
        self._writers: list[StreamWriter] = []

    def add(self, writer: "StreamWriter") -> None:
        """Has a writer go on soon, together with all others that are added until then."""
        if not self._writers:
            asyncio.get_running_loop().call_soon(self._run)
        self._writers.append(writer)

    def _run(self) -> None:
        writers, self._writers = self._writers, []
        # All messages first, then all writes: gRPC's code and the kernel's push ours out of the processor's caches.
        ready = [writer for writer in writers if writer.prepare()]
        for writer in ready:
            writer.begin()


class StreamWriter:
    """Writes one request's events to its call, one message at a time.

    A task of its own would take several turns of the event loop for each token.
    This one is called when there is something to do, and otherwise not: when its
    stream has something new, or, if that comes while a message is being written,
    when that message is. Deltas that come meanwhile are coalesced in the stream.
    """

    __slots__ = (
        "_clock",
        "_ended",
        "_is_last",
        "_round",
        "_sink",
        "_stream",
        "_write",
        "_writing_since_s",
        "call",
    )

    def __init__(
        self, stream: OutputStream, sink: MessageSink, call: Call, write_round: WriteRound, clock: Clock
    ) -> None:
        self.call = call
        self._stream = stream
        self._sink = sink
        self._round = write_round
        self._clock = clock
        self._write: BegunWriting | None = None
        self._writing_since_s = 0.0
        self._is_last = False
        """Whether the last event of the stream is being written, or was."""
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def writing_since_s(self) -> float | None:
        """When the write that is under way began; None while none is."""
        return self._writing_since_s if self._write is not None and self._write.is_waiting else None

    async def run(self) -> None:
        """Writes until the last event is written. Call once.

        Raises:
            HeadraceError: the error that the stream was ended with, after everything before it was written.
            grpc.aio.BaseError: the call takes no more messages.
        """
        self._ask_to_go_on()
        try:
            await self._ended
        finally:
            if self._write is not None:
                self._write.close()

    def prepare(self) -> bool:
        """Makes the next message; returns whether there is one that can be written now."""
        try:
            if self._ended.done():
                return False
            if self._write is not None:
                if not self._write.is_done():
                    self._wait(self._write)
                    return False
                self._write = None
                self.call.message_count += 1
                if self._is_last:
                    self._ended.set_result(None)
                    return False
            event = self._stream.take()
            if event is None:
                self._stream.when_filled(self._ask_to_go_on)
                return False
            self._is_last = isinstance(event, GenerationFinished)
            self._sink.prepare(event)
        except Exception as error:  # noqa: BLE001  # it is this call's, raised where its handler waits
            self._ended.set_exception(error)
            return False
        return True

    def begin(self) -> None:
        """Begins to write the message that was prepared."""
        self._writing_since_s = self._clock.now()
        try:
            self._write = self._sink.begin()
        except Exception as error:  # noqa: BLE001  # as above
            self._ended.set_exception(error)
            return
        if self._write.is_waiting:
            self._wait(self._write)
        else:
            self._ask_to_go_on()

    def _wait(self, write: BegunWriting) -> None:
        """Arranges for being called again when the next message can be written."""
        if self._is_last or self._stream.has_event:
            write.when_ready(self._ask_to_go_on)
        else:
            # The usual case: the message will be written before there is another one, so nobody has to say so.
            self._stream.when_filled(self._ask_to_go_on)

    def _ask_to_go_on(self) -> None:
        self._round.add(self)
