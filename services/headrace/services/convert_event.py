"""Converts the events that answer a request to `headrace.v1`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from headrace.contract.generation import (
    CompletionEnd,
    FinishReason,
    GenerationDelta,
    GenerationEvent,
    GenerationFinished,
    GenerationStarted,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from headrace.services.duration import duration_to_proto
from headrace.v1 import chat_pb2
from headrace.v1 import generate_service_pb2 as pb

_FINISH_REASONS = {
    FinishReason.END_OF_SEQUENCE: pb.FINISH_REASON_END_OF_SEQUENCE,
    FinishReason.STOP_SEQUENCE: pb.FINISH_REASON_STOP_SEQUENCE,
    FinishReason.STOP_TOKEN: pb.FINISH_REASON_STOP_TOKEN,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.CONTEXT_LIMIT: pb.FINISH_REASON_CONTEXT_LIMIT,
    FinishReason.TIME_LIMIT: pb.FINISH_REASON_TIME_LIMIT,
    FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
    FinishReason.TOOL_CALL: pb.FINISH_REASON_TOOL_CALL,
}


def event_to_proto(event: GenerationEvent) -> pb.GenerateStreamResponse:
    """Returns the stream message of an event."""
    response = pb.GenerateStreamResponse()
    fill_response(response, event)
    return response


def fill_response(response: pb.GenerateStreamResponse, event: GenerationEvent) -> None:
    """Makes an empty stream message that of an event. In place: to copy one into a larger message takes as long."""
    match event:
        case GenerationDelta():
            _fill_delta(response.delta, event)
        case GenerationStarted():
            response.started.CopyFrom(_started_to_proto(event))
        case GenerationFinished():
            response.finished.CopyFrom(_finished_to_proto(event))


def response_to_proto(events: Sequence[GenerationEvent]) -> pb.GenerateResponse:
    """Returns the whole answer that a complete series of events adds up to.

    Raises:
        ValueError: the events do not begin with `started` and end with `finished`.
    """
    if len(events) < 2:
        raise ValueError(f"an answer has a beginning and an end, got {len(events)} events")
    started, finished = events[0], events[-1]
    if not isinstance(started, GenerationStarted) or not isinstance(finished, GenerationFinished):
        raise ValueError(f"an answer is {type(started).__name__} ... {type(finished).__name__}")
    return pb.GenerateResponse(
        request_id=started.request_id,
        model=started.model,
        completions=_completions(events, finished),
        usage=_usage_to_proto(finished.usage),
        timings=_timings_to_proto(finished.timings),
        seed=started.seed,
        prompt_logprobs=_logprobs_to_proto(started.prompt_logprobs),
    )


@dataclass(slots=True)
class _Parts:
    """What the deltas of one completion have brought so far."""

    texts: list[str] = field(default_factory=list[str])
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    reasonings: list[str] = field(default_factory=list[str])
    tool_calls: list[ToolCallDelta] = field(default_factory=list[ToolCallDelta])


def _completions(events: Iterable[GenerationEvent], finished: GenerationFinished) -> list[pb.Completion]:
    parts = {end.index: _Parts() for end in finished.ends}
    for event in events:
        if isinstance(event, GenerationDelta):
            part = parts[event.index]
            part.texts.append(event.text)
            part.token_ids.extend(event.token_ids)
            part.logprobs.extend(event.logprobs)
            part.reasonings.append(event.reasoning)
            part.tool_calls.extend(event.tool_calls)
    return [
        pb.Completion(
            index=end.index,
            text="".join(parts[end.index].texts),
            token_ids=parts[end.index].token_ids,
            logprobs=_logprobs_to_proto(parts[end.index].logprobs),
            end=_end_to_proto(end),
            reasoning="".join(parts[end.index].reasonings),
            tool_calls=_tool_calls_to_proto(parts[end.index].tool_calls),
        )
        for end in finished.ends
    ]


def _tool_calls_to_proto(pieces: Iterable[ToolCallDelta]) -> list[chat_pb2.ToolCall]:
    """Puts the pieces of each call together."""
    calls: dict[int, chat_pb2.ToolCall] = {}
    for piece in pieces:
        call = calls.setdefault(piece.index, chat_pb2.ToolCall())
        call.id += piece.id
        call.name += piece.name
        call.arguments_json += piece.arguments_json
    return list(calls.values())


def _started_to_proto(event: GenerationStarted) -> pb.GenerationStarted:
    return pb.GenerationStarted(
        request_id=event.request_id,
        model=event.model,
        prompt_token_count=event.prompt_token_count,
        cached_token_count=event.cached_token_count,
        seed=event.seed,
        prompt_logprobs=_logprobs_to_proto(event.prompt_logprobs),
    )


def _fill_delta(delta: pb.GenerationDelta, event: GenerationDelta) -> None:
    """Written for every token: only what is there is set, which takes a third."""
    if not event.text:
        # An empty field looks like one that was never set, and an empty delta must still be one.
        delta.SetInParent()
    if event.index:
        delta.index = event.index
    if event.text:
        delta.text = event.text
    delta.token_ids.extend(event.token_ids)
    if event.logprobs:
        delta.logprobs.extend(_logprobs_to_proto(event.logprobs))
    if event.reasoning:
        delta.reasoning = event.reasoning
    for piece in event.tool_calls:
        delta.tool_calls.add(index=piece.index, id=piece.id, name=piece.name, arguments_json=piece.arguments_json)


def _finished_to_proto(event: GenerationFinished) -> pb.GenerationFinished:
    return pb.GenerationFinished(
        ends=[_end_to_proto(end) for end in event.ends],
        usage=_usage_to_proto(event.usage),
        timings=_timings_to_proto(event.timings),
    )


def _end_to_proto(end: CompletionEnd) -> pb.CompletionEnd:
    return pb.CompletionEnd(
        index=end.index,
        reason=_FINISH_REASONS[end.reason],
        stop_sequence=end.stop_sequence,
        stop_token_id=end.stop_token_id,
        generated_token_count=end.generated_token_count,
        seed=end.seed,
        mean_logprob=end.mean_logprob,
    )


def _usage_to_proto(usage: Usage) -> pb.Usage:
    return pb.Usage(
        prompt_token_count=usage.prompt_token_count,
        cached_token_count=usage.cached_token_count,
        generated_token_count=usage.generated_token_count,
        drafted_token_count=usage.drafted_token_count,
        accepted_token_count=usage.accepted_token_count,
    )


def _timings_to_proto(timings: Timings) -> pb.Timings:
    return pb.Timings(
        queued=duration_to_proto(timings.queued_s),
        prefill=duration_to_proto(timings.prefill_s),
        decode=duration_to_proto(timings.decode_s),
    )


def _logprobs_to_proto(logprobs: Iterable[TokenLogprob]) -> list[pb.TokenLogprob]:
    return [
        pb.TokenLogprob(
            token_id=logprob.token_id,
            text=logprob.text,
            logprob=logprob.logprob,
            rank=logprob.rank,
            top=_logprobs_to_proto(logprob.top),
            byte_offset=logprob.byte_offset,
        )
        for logprob in logprobs
    ]
