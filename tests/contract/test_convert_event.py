"""Events reach the client's messages whole, and a whole answer is the sum of its stream."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from headrace.services.convert_event import event_to_proto, response_to_proto
from headrace.v1 import generate_service_pb2 as pb

STARTED = GenerationStarted(
    request_id="r",
    model="m",
    prompt_token_count=9,
    cached_token_count=4,
    seed=2**64 - 1,
    prompt_logprobs=(TokenLogprob(token_id=1, text="a", logprob=None, rank=1),),
)


def finished(*ends: CompletionEnd) -> GenerationFinished:
    usage = Usage(prompt_token_count=9, cached_token_count=4, generated_token_count=3)
    return GenerationFinished(ends=ends, usage=usage, timings=Timings(queued_s=0.25, prefill_s=1.5, decode_s=2.0))


def test_the_start_is_told() -> None:
    started = event_to_proto(STARTED).started
    assert (started.request_id, started.model, started.seed) == ("r", "m", 2**64 - 1)
    assert (started.prompt_token_count, started.cached_token_count) == (9, 4)
    assert not started.prompt_logprobs[0].HasField("logprob")


def test_the_end_is_told() -> None:
    end = CompletionEnd(
        reason=FinishReason.STOP_TOKEN,
        generated_token_count=3,
        stop_token_id=0,
        index=1,
        seed=2**64 - 1,
        mean_logprob=-0.0,
    )
    message = event_to_proto(finished(end)).finished
    assert message.ends[0].HasField("stop_token_id")
    assert (message.ends[0].index, message.ends[0].generated_token_count) == (1, 3)
    assert message.ends[0].seed == 2**64 - 1
    assert message.ends[0].HasField("mean_logprob")
    assert message.timings.prefill.ToMilliseconds() == 1500
    assert message.usage.generated_token_count == 3


def test_log_probabilities_keep_their_rivals() -> None:
    rival = TokenLogprob(token_id=8, text="b", logprob=-2.5, rank=2)
    logprob = TokenLogprob(token_id=7, text="a", logprob=-0.5, rank=1, top=(rival,), byte_offset=12)
    [message] = event_to_proto(GenerationDelta(text="a", token_ids=(7,), logprobs=(logprob,))).delta.logprobs
    assert (message.token_id, message.text, message.logprob, message.byte_offset) == (7, "a", -0.5, 12)
    assert (message.top[0].token_id, message.top[0].rank) == (8, 2)


@pytest.mark.parametrize("reason", FinishReason)
def test_every_reason_has_a_value_of_its_own(reason: FinishReason) -> None:
    [end] = event_to_proto(finished(CompletionEnd(reason=reason, generated_token_count=1, seed=0))).finished.ends
    assert not end.HasField("mean_logprob")
    assert pb.FinishReason.Name(end.reason) == f"FINISH_REASON_{reason.name}"


deltas = st.lists(
    st.builds(
        GenerationDelta,
        text=st.text(max_size=5),
        token_ids=st.lists(st.integers(0, 99), max_size=3).map(tuple),
        index=st.integers(0, 1),
        reasoning=st.text(max_size=5),
    ),
    max_size=8,
)


@given(deltas)
def test_a_whole_answer_is_the_sum_of_its_stream(stream: list[GenerationDelta]) -> None:
    ends = [CompletionEnd(reason=FinishReason.LENGTH, generated_token_count=1, index=index, seed=0) for index in (0, 1)]
    response = response_to_proto([STARTED, *stream, finished(*ends)])
    for completion in response.completions:
        of_this = [delta for delta in stream if delta.index == completion.index]
        assert completion.text == "".join(delta.text for delta in of_this)
        assert completion.reasoning == "".join(delta.reasoning for delta in of_this)
        assert list(completion.token_ids) == [token_id for delta in of_this for token_id in delta.token_ids]
    assert [completion.index for completion in response.completions] == [0, 1]
    assert (response.request_id, response.seed) == ("r", 2**64 - 1)
    assert response.timings.queued.ToMilliseconds() == 250


def test_a_tool_call_is_the_sum_of_its_pieces() -> None:
    first = ToolCallDelta(index=0, id="c1", name="look", arguments_json='{"at":')
    rest = ToolCallDelta(index=0, arguments_json=" 1}")
    second = ToolCallDelta(index=1, id="c2", name="wait", arguments_json="{}")
    stream = [
        GenerationDelta(text="", token_ids=(1,), tool_calls=(first,)),
        GenerationDelta(text="", token_ids=(2,), tool_calls=(rest, second)),
    ]
    end = CompletionEnd(reason=FinishReason.TOOL_CALL, generated_token_count=2, seed=0)
    [completion] = response_to_proto([STARTED, *stream, finished(end)]).completions
    assert [(call.id, call.name, call.arguments_json) for call in completion.tool_calls] == [
        ("c1", "look", '{"at": 1}'),
        ("c2", "wait", "{}"),
    ]
    pieces = event_to_proto(stream[1]).delta.tool_calls
    assert [(piece.index, piece.id, piece.name, piece.arguments_json) for piece in pieces] == [
        (0, "", "", " 1}"),
        (1, "c2", "wait", "{}"),
    ]


@pytest.mark.parametrize("events", [[], [STARTED], [STARTED, STARTED], [finished(), finished()]])
def test_a_series_that_is_not_whole_is_no_answer(events: list[GenerationEvent]) -> None:
    with pytest.raises(ValueError, match="an answer"):
        response_to_proto(events)
