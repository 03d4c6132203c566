"""A generation stream for threads."""

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self, TypeVar

import grpc

from headrace.client.errors import error_from_rpc
from headrace.client.progress import CancellableCall, StreamProgress
from headrace.client.results import Delta, Generation, Started
from headrace.v1 import generate_service_pb2 as generate_pb

ResponseT_co = TypeVar("ResponseT_co", covariant=True)


class StreamingCall(CancellableCall, Protocol[ResponseT_co]):
    """What gRPC returns for a stream of responses."""

    def __iter__(self) -> Iterator[ResponseT_co]:
        """Returns itself."""
        ...

    def __next__(self) -> ResponseT_co:
        """Waits for the next response."""
        ...


class GenerationStream(StreamProgress):
    """Deltas of a completion as they are generated.

    The call is under way once this exists. Read it by one thread, to its end or
    inside of `with`, which cancels what was not read:

        with client.stream("Once upon a time") as stream:
            for delta in stream:
                print(delta.text, end="", flush=True)
        print(stream.finished.reason)

    A failure raises from the iteration; what came before stays readable. With
    several completions the deltas of all come interleaved, told apart by `index`.
    """

    def __init__(self, call: StreamingCall[generate_pb.GenerateStreamResponse], target: str) -> None:
        super().__init__(call, time.monotonic())
        self._call = call
        self._target = target

    def wait_started(self) -> Started:
        """Waits until the request has left the server's queue and returns the first event. Loses no delta.

        Raises:
            HeadraceError: the request failed.
            RuntimeError: the stream was cancelled before that.
        """
        while not self.has_started and (response := self._read()) is not None:
            self._record(response, time.monotonic())
        return self.started

    def texts(self) -> Iterator[str]:
        """Iterates over the non-empty texts of the first completion alone.

        Raises:
            HeadraceError: the request failed.
        """
        for delta in self:
            if delta.index == 0 and delta.text:
                yield delta.text

    def result(self) -> Generation:
        """Reads what is left and returns the whole answer, the deltas read before included.

        Raises:
            HeadraceError: the request failed.
            RuntimeError: the stream was cancelled.
        """
        for _ in self:
            pass
        return self._generation()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delta:
        while (response := self._read()) is not None:
            delta = self._record(response, time.monotonic())
            if delta is not None:
                return delta
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    def _read(self) -> generate_pb.GenerateStreamResponse | None:
        """Returns the next response, or None at the end."""
        if self._is_over:
            return None
        try:
            return next(self._call)
        except StopIteration:
            self._end()
            return None
        except grpc.RpcError as error:
            # cancel() was called, perhaps by another thread.
            if self._is_over:
                return None
            self._is_over = True
            raise error_from_rpc(error, self._target) from error
