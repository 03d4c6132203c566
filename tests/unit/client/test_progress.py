"""What a stream has brought: order, texts per completion, and times as this side sees them."""

import pytest

from headrace.client import FinishReason, Message, StreamBroken, ToolCall, Usage
from headrace.client.progress import StreamProgress
from headrace.v1 import generate_service_pb2 as pb

STARTED = pb.GenerateStreamResponse(started=pb.GenerationStarted(request_id="r", model="m", seed=7))


class Call:
    def __init__(self) -> None:
        self.cancel_count = 0

    def cancel(self) -> bool:
        self.cancel_count += 1
        return True


class Progress(StreamProgress):
    def __init__(self, begun_s: float = 0.0) -> None:
        self.call = Call()
        super().__init__(self.call, begun_s)

    def take(self, response: pb.GenerateStreamResponse, now_s: float = 0.0) -> str | None:
        delta = self._record(response, now_s)
        return None if delta is None else delta.text

    def end(self) -> None:
        self._end()


def delta(text: str, token_count: int = 1, index: int = 0) -> pb.GenerateStreamResponse:
    ids = range(token_count)
    return pb.GenerateStreamResponse(delta=pb.GenerationDelta(text=text, token_ids=ids, index=index))


def finished(reason: pb.FinishReason.ValueType = pb.FINISH_REASON_LENGTH, count: int = 1) -> pb.GenerateStreamResponse:
    ends = [pb.CompletionEnd(index=index, reason=reason) for index in range(count)]
    usage = pb.Usage(prompt_token_count=3, cached_token_count=2, generated_token_count=5)
    return pb.GenerateStreamResponse(finished=pb.GenerationFinished(ends=ends, usage=usage))


def test_events_in_order_build_the_answer() -> None:
    progress = Progress()
    assert not progress.has_started
    assert progress.take(STARTED) is None
    assert (progress.started.seed, progress.text) == (7, "")
    assert [progress.take(delta("Once ")), progress.take(delta("upon", 2))] == ["Once ", "upon"]
    assert progress.text == "Once upon"
    assert not progress.has_finished
    progress.take(finished())
    progress.end()
    assert progress.finished.reason is FinishReason.LENGTH
    assert progress.finished.usage == Usage(prompt_token_count=3, cached_token_count=2, generated_token_count=5)
    answer = progress._generation()
    assert (answer.text, answer.token_ids, answer.reason) == ("Once upon", (0, 0, 1), FinishReason.LENGTH)
    assert (answer.request_id, answer.model, answer.seed) == ("r", "m", 7)


def test_completions_are_told_apart_and_one_without_text_is_empty() -> None:
    progress = Progress()
    for response in (STARTED, delta("a"), delta("x", index=1), delta("b"), finished(count=3)):
        progress.take(response)
    assert [completion.text for completion in progress._generation().completions] == ["ab", "x", ""]
    assert progress.text == "ab"


@pytest.mark.parametrize(
    "responses",
    [
        [delta("a")],
        [finished()],
        [STARTED, STARTED],
        [STARTED, finished(), delta("a")],
        [STARTED, finished(), finished()],
    ],
)
def test_an_event_out_of_order_breaks_the_stream_and_cancels_the_call(
    responses: list[pb.GenerateStreamResponse],
) -> None:
    progress = Progress()
    for response in responses[:-1]:
        progress.take(response)
    with pytest.raises(StreamBroken, match="out of order"):
        progress.take(responses[-1])
    assert progress.call.cancel_count == 1


def test_an_end_without_finished_breaks_the_stream() -> None:
    progress = Progress()
    progress.take(STARTED)
    with pytest.raises(StreamBroken, match="without finished"):
        progress.end()


def test_events_of_a_newer_contract_are_passed_over() -> None:
    progress = Progress()
    assert progress.take(pb.GenerateStreamResponse()) is None
    assert not progress.has_started


def test_a_reason_of_a_newer_contract_is_unknown() -> None:
    progress = Progress()
    progress.take(STARTED)
    newer = pb.GenerateStreamResponse.FromString(b"\x1a\x04\x0a\x02\x10\x63")
    assert newer.finished.ends[0].reason == 99
    progress.take(newer)
    assert progress.finished.reason is FinishReason.UNKNOWN


def test_times_count_from_the_call_and_from_the_first_token() -> None:
    progress = Progress(begun_s=100.0)
    progress.take(STARTED, 100.5)
    progress.take(delta("", token_count=0), 100.75)
    assert progress.time_to_first_token_s is None
    progress.take(delta("a", token_count=4), 101.0)
    assert progress.time_to_first_token_s == 1.0
    assert progress.tokens_per_s is None
    progress.take(delta("b", token_count=6), 104.0)
    assert progress.tokens_per_s == 2.0
    progress.take(finished(), 109.0)
    assert progress.tokens_per_s == 2.0


def test_cancelling_is_remembered_once_and_not_after_the_end() -> None:
    progress = Progress()
    progress.take(STARTED)
    progress.cancel()
    progress.cancel()
    assert (progress.is_cancelled, progress.call.cancel_count) == (True, 1)
    with pytest.raises(RuntimeError, match="was cancelled"):
        _ = progress.finished

    ended = Progress()
    ended.take(STARTED)
    ended.take(finished())
    ended.end()
    ended.cancel()
    assert (ended.is_cancelled, ended.call.cancel_count) == (False, 0)


def test_what_has_not_come_yet_says_so() -> None:
    progress = Progress()
    with pytest.raises(RuntimeError, match="has not started"):
        _ = progress.started
    with pytest.raises(RuntimeError, match="has not finished"):
        _ = progress.finished


def test_reasoning_and_tool_calls_are_put_together_from_their_pieces() -> None:
    progress = Progress()
    pieces = [
        pb.GenerationDelta(reasoning="Let me "),
        pb.GenerationDelta(reasoning="see.", text="I will look. "),
        pb.GenerationDelta(tool_calls=[pb.ToolCallDelta(index=0, id="c1", name="look", arguments_json='{"at":')]),
        pb.GenerationDelta(
            tool_calls=[
                pb.ToolCallDelta(index=0, arguments_json=' "x"}'),
                pb.ToolCallDelta(index=1, id="c2", name="wait", arguments_json="{}"),
            ]
        ),
    ]
    for response in (STARTED, *(pb.GenerateStreamResponse(delta=piece) for piece in pieces), finished()):
        progress.take(response)
    calls = (
        ToolCall(id="c1", name="look", arguments_json='{"at": "x"}'),
        ToolCall(id="c2", name="wait", arguments_json="{}"),
    )
    assert (progress.reasoning, progress.text, progress.tool_calls) == ("Let me see.", "I will look. ", calls)
    answer = progress._generation()
    assert (answer.reasoning, answer.text, answer.tool_calls) == ("Let me see.", "I will look. ", calls)
    assert answer.message == Message("assistant", "I will look. ", tool_calls=calls, reasoning="Let me see.")
    assert calls[0].arguments == {"at": "x"}
    assert calls[0].result("a cat") == Message("tool", "a cat", name="look", tool_call_id="c1")


@pytest.mark.parametrize("arguments_json", ["[]", "1", "{", ""])
def test_arguments_that_are_no_object_are_no_arguments(arguments_json: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # json words it, not we
        _ = ToolCall(id="c", name="f", arguments_json=arguments_json).arguments
