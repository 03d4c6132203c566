"""A generation stream for asyncio."""

import asyncio
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

import grpc.aio

from headrace.client.aio_channel import is_task_cancelled
from headrace.client.aio_multiplexer import ResponseStream
from headrace.client.errors import error_from_rpc
from headrace.client.progress import StreamProgress
from headrace.client.results import Delta, Generation, Started
from headrace.v1 import generate_service_pb2 as generate_pb


class AsyncGenerationStream(StreamProgress):
    """Deltas of a completion as they are generated.

    The call is under way once this exists. Read it by one task, to its end or
    inside of `async with`, which cancels what was not read:

        async with client.stream("Once upon a time") as stream:
            async for delta in stream:
                print(delta.text, end="", flush=True)
        print(stream.finished.reason)

    A failure raises from the iteration; what came before stays readable. With
    several completions the deltas of all come interleaved, told apart by `index`.
    """

    def __init__(self, call: ResponseStream, target: str) -> None:
        super().__init__(call, time.monotonic())
        # Not call.read(): it gives up messages that have arrived once the status has arrived as well.
        self._responses = aiter(call)
        self._target = target

    async def wait_started(self) -> Started:
        """Waits until the request has left the server's queue and returns the first event. Loses no delta.

        Raises:
            HeadraceError: the request failed.
            RuntimeError: the stream was cancelled before that.
        """
        while not self.has_started and (response := await self._read()) is not None:
            self._record(response, time.monotonic())
        return self.started

    async def texts(self) -> AsyncIterator[str]:
        """Iterates over the non-empty texts of the first completion alone.

        Raises:
            HeadraceError: the request failed.
        """
        async for delta in self:
            if delta.index == 0 and delta.text:
                yield delta.text

    async def result(self) -> Generation:
        """Reads what is left and returns the whole answer, the deltas read before included.

        Raises:
            HeadraceError: the request failed.
            RuntimeError: the stream was cancelled.
        """
        async for _ in self:
            pass
        return self._generation()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        while (response := await self._read()) is not None:
            delta = self._record(response, time.monotonic())
            if delta is not None:
                return delta
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    async def _read(self) -> generate_pb.GenerateStreamResponse | None:
        """Returns the next response, or None at the end."""
        if self._is_over:
            return None
        try:
            return await anext(self._responses)
        except StopAsyncIteration:
            self._end()
            return None
        except grpc.aio.AioRpcError as error:
            self._is_over = True
            raise error_from_rpc(error, self._target) from error
        except asyncio.CancelledError:
            self.cancel()
            # cancel() was called, or the client closed: only a task that is cancelled itself has to end.
            if is_task_cancelled():
                raise
            return None
