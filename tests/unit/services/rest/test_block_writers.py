"""Answers with reasoning, text and tool calls in the protocols that have blocks: streams say what whole answers say."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from headrace.client import convert
from headrace.contract.errors import RequestAborted
from headrace.services.rest import anthropic_answer
from headrace.services.rest.anthropic_fields import MessagesBody
from headrace.services.rest.anthropic_stream import MessageWriter
from headrace.services.rest.responses_answer import response_of
from headrace.services.rest.responses_fields import ResponsesBody
from headrace.services.rest.responses_stream import ResponseWriter
from headrace.v1 import generate_service_pb2 as pb

CALLS = (("call-1", "look_up", '{"city":"Zürich"}'), ("call-2", "sleep", "{}"))
ANSWERS = {
    "text": {"text": "Hello world"},
    "reasoning": {"reasoning": "Let me think", "text": "Hello"},
    "calls": {"text": "One moment", "calls": CALLS},
    "everything": {"reasoning": "Let me think", "text": "One moment", "calls": CALLS},
    "calls alone": {"calls": CALLS},
    "nothing": {},
}


def end_of(calls: Sequence[Any], reason: int) -> pb.CompletionEnd:
    return pb.CompletionEnd(index=0, reason=reason, generated_token_count=9, seed=1)


def deltas_of(*, reasoning: str = "", text: str = "", calls: Sequence[Any] = ()) -> list[pb.GenerationDelta]:
    """Divides an answer as a router may: letter by letter, arguments in two pieces."""
    deltas = [pb.GenerationDelta(reasoning=letter) for letter in reasoning]
    deltas += [pb.GenerationDelta(text=letter) for letter in text]
    for index, (call_id, name, arguments) in enumerate(calls):
        first = pb.ToolCallDelta(index=index, id=call_id, name=name, arguments_json=arguments[:1])
        deltas.append(pb.GenerationDelta(tool_calls=[first]))
        rest = pb.ToolCallDelta(index=index, arguments_json=arguments[1:])
        deltas.append(pb.GenerationDelta(tool_calls=[rest]))
    return deltas


def whole(answer: dict[str, Any], reason: int = pb.FINISH_REASON_END_OF_SEQUENCE) -> Any:
    completion = pb.Completion(
        text=answer.get("text", ""),
        reasoning=answer.get("reasoning", ""),
        end=end_of(answer.get("calls", ()), reason),
    )
    for call_id, name, arguments in answer.get("calls", ()):
        completion.tool_calls.add(id=call_id, name=name, arguments_json=arguments)
    usage = pb.Usage(prompt_token_count=7, cached_token_count=3, generated_token_count=9)
    return convert.generation_from_proto(
        pb.GenerateResponse(request_id="r", model="m", completions=[completion], usage=usage)
    )


def events_of(writer: Any, answer: dict[str, Any], reason: int = pb.FINISH_REASON_END_OF_SEQUENCE) -> list[Any]:
    started = pb.GenerationStarted(request_id="r", model="m", prompt_token_count=7, cached_token_count=3)
    finished = pb.GenerationFinished(
        ends=[end_of(answer.get("calls", ()), reason)],
        usage=pb.Usage(prompt_token_count=7, cached_token_count=3, generated_token_count=9),
    )
    raw = writer.started(started) + b"".join(writer.delta(delta) for delta in deltas_of(**answer))
    raw += writer.finished(finished)
    events = []
    for event in raw.decode().removesuffix("\n\n").split("\n\n"):
        kind, data = event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert kind == f"event: {events[-1]['type']}"
    return events


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_anthropics_stream_adds_up_to_the_message(answer: dict[str, Any]) -> None:
    events = events_of(MessageWriter("r"), answer)
    message = events[0]["message"]
    pieces: dict[int, str] = {}
    for event in events[1:-2]:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append(event["content_block"])
            case "content_block_delta":
                delta = event["delta"]
                key = next(key for key in delta if key != "type")
                pieces[event["index"]] = pieces.get(event["index"], "") + delta[key]
            case "content_block_stop":
                block = message["content"][event["index"]]
                piece = pieces.get(event["index"], "")
                key = {"text": "text", "thinking": "thinking", "tool_use": "input"}[block["type"]]
                block[key] = json.loads(piece) if key == "input" else piece
    message |= events[-2]["delta"] | {"usage": events[-2]["usage"]}
    assert message == anthropic_answer.message_of_generation(whole(answer))
    assert message["stop_reason"] == ("tool_use" if "calls" in answer else "end_turn")
    assert message["usage"] == {
        "input_tokens": 4,
        "output_tokens": 9,
        "cache_read_input_tokens": 3,
        "cache_creation_input_tokens": 0,
    }
    assert events[-1] == {"type": "message_stop"}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_the_responses_stream_adds_up_to_the_response(answer: dict[str, Any]) -> None:
    body = ResponsesBody.model_validate({"input": "x"})
    events = events_of(ResponseWriter(body), answer)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    pieces: dict[str, str] = {}
    items = []
    for event in events:
        if event["type"].endswith(".delta"):
            pieces[event["item_id"]] = pieces.get(event["item_id"], "") + event["delta"]
        if event["type"] == "response.output_item.done":
            item = event["item"]
            assert event["output_index"] == len(items)
            said = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
            assert said == pieces[item["id"]]
            items.append(item)
    final = events[-1]["response"]
    expected = response_of(body, whole(answer))
    assert final["output"] == items
    assert final | {"created_at": 0} == expected | {"created_at": 0}
    assert final["status"] == "completed"


@pytest.mark.parametrize("make", [lambda: MessageWriter("r"), lambda: ResponseWriter(ResponsesBody(input="x"))])
def test_an_answer_that_was_aborted_is_an_error(make: Any) -> None:
    with pytest.raises(RequestAborted):
        events_of(make(), ANSWERS["text"], reason=pb.FINISH_REASON_CANCELLED)


def test_anthropics_turns_become_messages() -> None:
    result = {"type": "tool_result", "tool_use_id": "call-1", "content": [{"type": "text", "text": "4 °C"}]}
    body = MessagesBody.model_validate(
        {
            "model": "m",
            "max_tokens": 4,
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [
                {"role": "user", "content": "How cold is it?"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "I look.", "signature": "s"},
                        {"type": "text", "text": "One moment."},
                        {"type": "tool_use", "id": "call-1", "name": "look_up", "input": {"city": "Zürich"}},
                    ],
                },
                {"role": "user", "content": [result | {"is_error": True}, {"type": "text", "text": "And now?"}]},
            ],
            "tools": [{"name": "look_up", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
            "thinking": {"type": "enabled", "budget_tokens": 100},
        }
    )
    messages, paths = body.conversation()
    assert [message.role for message in messages] == ["system", "user", "assistant", "tool", "user"]
    assert paths == ["system", "messages[0]", "messages[1]", "messages[2]", "messages[2]"]
    assistant = messages[2]
    assert (assistant.content, assistant.reasoning) == ("One moment.", "I look.")
    assert assistant.tool_calls[0].arguments == {"city": "Zürich"}
    assert (messages[3].tool_call_id, list(messages[3].content), list(messages[4].content)) == (
        "call-1",
        ["4 °C"],
        ["And now?"],
    )
    options = body.options("r")
    assert (options["tool_choice"], options["parallel_tool_calls"]) == ("required", False)
    assert options["template_arguments"] == {"enable_thinking": True}
    assert [tool.name for tool in options["tools"]] == ["look_up"]
    assert options["continue_final_message"] is None
    assert body.ignored() == "thinking.budget_tokens, signature, is_error"


def test_items_of_responses_become_messages() -> None:
    body = ResponsesBody.model_validate(
        {
            "instructions": "Be brief.",
            "input": [
                {"role": "developer", "content": "In German."},
                {"role": "user", "content": [{"type": "input_text", "text": "How cold is it?"}]},
                {"type": "reasoning", "id": "rs", "content": [{"type": "reasoning_text", "text": "I look."}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "One moment."}]},
                {"type": "function_call", "call_id": "call-1", "name": "look_up", "arguments": "{}"},
                {"type": "function_call", "call_id": "call-2", "name": "look_up", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "call-1", "output": "4 °C"},
                {"role": "assistant", "content": "4 °C."},
                {"role": "assistant", "content": "Cold."},
            ],
            "tools": [{"type": "function", "name": "look_up", "parameters": {"type": "object"}, "strict": True}],
            "tool_choice": {"type": "function", "name": "look_up"},
        }
    )
    messages, paths = body.conversation_of()
    assert [message["role"] if isinstance(message, dict) else message.role for message in messages] == [
        "system",
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "assistant",
    ]
    assert paths == ["instructions", "input[0]", "input[1]", "input[2]", "input[6]", "input[7]", "input[8]"]
    turn = messages[3]
    assert (turn["reasoning"], turn["content"]) == ("I look.", "One moment.")
    assert [call["id"] for call in turn["tool_calls"]] == ["call-1", "call-2"]
    assert body.options("r")["tool_choice"].name == "look_up"
