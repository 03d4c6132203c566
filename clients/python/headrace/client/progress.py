"""What a generation stream has brought so far, and when; the waiting is left to the two kinds of stream."""

from typing import Protocol

from headrace.client.chat import ToolCall
from headrace.client.convert import delta_from_proto, finished_from_proto, started_from_proto
from headrace.client.errors import StreamBroken
from headrace.client.results import (
    Completion,
    CompletionEnd,
    Delta,
    Finished,
    Generation,
    Started,
    TokenLogprob,
    ToolCallDelta,
)
from headrace.v1 import generate_service_pb2 as generate_pb


class CancellableCall(Protocol):
    """What this module needs of gRPC's calls."""

    def cancel(self) -> bool:
        """Ends the call."""
        ...


class StreamProgress:
    """The part of a stream that both clients share. Everything here can be read at any time, after a failure too."""

    def __init__(self, call: CancellableCall, begun_s: float) -> None:
        self._cancellable = call
        self._started: Started | None = None
        self._finished: Finished | None = None
        self._completions: dict[int, _OpenCompletion] = {}
        self._begun_s = begun_s
        self._first_token_s: float | None = None
        self._last_token_s: float | None = None
        self._later_token_count = 0
        self._is_over = False
        self._is_cancelled = False

    @property
    def has_started(self) -> bool:
        """Whether the request has left the server's queue."""
        return self._started is not None

    @property
    def has_finished(self) -> bool:
        """Whether the stream came to its end. A stream that failed or was cancelled never does."""
        return self._finished is not None

    @property
    def is_cancelled(self) -> bool:
        """Whether this side cancelled the stream before it had finished."""
        return self._is_cancelled

    @property
    def started(self) -> Started:
        """The first event.

        Raises:
            RuntimeError: it has not come yet; iterate, or use `wait_started`.
        """
        if self._started is None:
            raise RuntimeError("the stream has not started; read it, or call wait_started()")
        return self._started

    @property
    def finished(self) -> Finished:
        """The last event: why the completion ended, token counts and timings.

        Raises:
            RuntimeError: it has not come; read the stream to its end.
        """
        if self._finished is None:
            state = "was cancelled" if self._is_cancelled else "has not finished; read it to its end"
            raise RuntimeError(f"the stream {state}")
        return self._finished

    @property
    def text(self) -> str:
        """The text of the first completion, as far as it has come."""
        completion = self._completions.get(0)
        return "" if completion is None else completion.text

    @property
    def reasoning(self) -> str:
        """The reasoning of the first completion, as far as it has come."""
        completion = self._completions.get(0)
        return "" if completion is None else completion.reasoning

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls of the first completion, as far as they have come."""
        completion = self._completions.get(0)
        return () if completion is None else completion.tool_calls

    @property
    def time_to_first_token_s(self) -> float | None:
        """Seconds from the call to the first token as this side saw it; None before that."""
        return None if self._first_token_s is None else self._first_token_s - self._begun_s

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second since the first ones, as this side saw them; None until there are some."""
        if self._first_token_s is None or self._last_token_s is None or self._last_token_s <= self._first_token_s:
            return None
        return self._later_token_count / (self._last_token_s - self._first_token_s)

    def cancel(self) -> None:
        """Ends the request; the server frees its memory within one step. Safe to repeat, and after the end.

        An iteration that is under way ends without an error.
        """
        if not self._is_over:
            self._is_over = True
            self._is_cancelled = not self.has_finished
            self._cancellable.cancel()

    def _record(self, response: generate_pb.GenerateStreamResponse, now_s: float) -> Delta | None:
        """Takes the next event in and returns it if it is a delta.

        Raises:
            StreamBroken: the event is not allowed at this point; the call is cancelled.
        """
        event = response.WhichOneof("event")
        if event is None:
            # An event of a newer contract.
            return None
        if (event == "started") != (self._started is None) or self._finished is not None:
            self.cancel()
            raise StreamBroken(f"{event} came out of order")
        match event:
            case "started":
                self._started = started_from_proto(response.started)
            case "delta":
                return self._record_delta(delta_from_proto(response.delta), now_s)
            case "finished":
                self._finished = finished_from_proto(response.finished)
        return None

    def _record_delta(self, delta: Delta, now_s: float) -> Delta:
        self._completions.setdefault(delta.index, _OpenCompletion()).append(delta)
        if delta.token_ids:
            self._last_token_s = now_s
            if self._first_token_s is None:
                self._first_token_s = now_s
            else:
                self._later_token_count += len(delta.token_ids)
        return delta

    def _end(self) -> None:
        """Takes in that the server ended the call well.

        Raises:
            StreamBroken: the last event is missing.
        """
        self._is_over = True
        if self._finished is None:
            raise StreamBroken("the stream ended well, but without finished")

    def _generation(self) -> Generation:
        started, finished = self.started, self.finished
        return Generation(
            request_id=started.request_id,
            model=started.model,
            completions=tuple(self._completions.get(end.index, _OpenCompletion()).close(end) for end in finished.ends),
            usage=finished.usage,
            timings=finished.timings,
            seed=started.seed,
            prompt_logprobs=started.prompt_logprobs,
        )


class _OpenCompletion:
    """A completion that grows."""

    __slots__ = ("_logprobs", "_reasonings", "_texts", "_token_ids", "_tool_calls")

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._reasonings: list[str] = []
        self._tool_calls: dict[int, list[ToolCallDelta]] = {}

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasonings)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple(
            ToolCall(
                id="".join(piece.id for piece in pieces),
                name="".join(piece.name for piece in pieces),
                arguments_json="".join(piece.arguments_json for piece in pieces),
            )
            for pieces in self._tool_calls.values()
        )

    def append(self, delta: Delta) -> None:
        self._texts.append(delta.text)
        self._token_ids.extend(delta.token_ids)
        self._logprobs.extend(delta.logprobs)
        self._reasonings.append(delta.reasoning)
        for piece in delta.tool_calls:
            self._tool_calls.setdefault(piece.index, []).append(piece)

    def close(self, end: CompletionEnd) -> Completion:
        return Completion(
            index=end.index,
            text=self.text,
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs),
            end=end,
            reasoning=self.reasoning,
            tool_calls=self.tool_calls,
        )
