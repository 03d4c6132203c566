"""What a client asks reaches the contract's types: every field, and whether it was set."""

import math
from typing import Any

import pytest
from google.protobuf import json_format, struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from headrace.contract.errors import InvalidRequest
from headrace.contract.generation import (
    ChatMessage,
    ChatPrompt,
    Constraint,
    ConstraintKind,
    GenerationRequest,
    OutputOptions,
    TextPrompt,
    TokenPrompt,
    ToolCall,
    ToolChoiceMode,
    WatermarkOptions,
)
from headrace.contract.sampling import LengthPenalty, SamplingOptions, StoppingOptions
from headrace.services.convert_request import (
    request_from_proto,
    sampling_from_proto,
    sampling_to_proto,
    tokenize_prompt_from_proto,
)
from headrace.v1 import chat_pb2, sampling_pb2
from headrace.v1 import generate_service_pb2 as pb

floats = st.floats(width=32, allow_nan=False)
options = st.builds(
    SamplingOptions,
    temperature=st.none() | floats,
    top_k=st.none() | st.integers(-(2**31), 2**31 - 1),
    top_p=st.none() | floats,
    min_p=st.none() | floats,
    typical_p=st.none() | floats,
    seed=st.none() | st.integers(0, 2**64 - 1),
    repetition_penalty=st.none() | floats,
    frequency_penalty=st.none() | floats,
    presence_penalty=st.none() | floats,
    logit_bias=st.dictionaries(st.integers(0, 2**32 - 1), floats, max_size=4),
    banned_words=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    length_penalty=st.none() | st.builds(LengthPenalty, start_index=st.integers(0, 99), decay_factor=floats),
)


@given(options)
def test_sampling_options_survive_the_wire(asked: SamplingOptions) -> None:
    data = sampling_to_proto(asked).SerializeToString()
    assert sampling_from_proto(sampling_pb2.SamplingParams.FromString(data)) == asked


def test_an_empty_request_sets_nothing() -> None:
    assert request_from_proto(pb.GenerateRequest(), deadline_s=None) == GenerationRequest(prompt=None)


def test_zero_is_a_value() -> None:
    request = pb.GenerateRequest(
        sampling=sampling_pb2.SamplingParams(temperature=0, seed=0, top_k=0),
        stopping=pb.StoppingRules(max_new_token_count=0, ignore_end_of_sequence=False),
        output=pb.OutputOptions(token_logprobs=False, top_logprob_count=0),
        priority=0,
        completion_count=0,
        best_of=0,
        truncate_prompt_token_count=0,
        add_special_tokens=False,
        watermark=pb.Watermark(enabled=False),
    )
    asked = request_from_proto(request, deadline_s=7.5)
    assert asked.sampling == SamplingOptions(temperature=0.0, seed=0, top_k=0)
    assert asked.stopping == StoppingOptions(max_new_token_count=0, ignore_end_of_sequence=False)
    assert asked.output == OutputOptions(token_logprobs=False, top_logprob_count=0)
    assert (asked.priority, asked.completion_count, asked.best_of, asked.truncate_prompt_token_count) == (0, 0, 0, 0)
    assert (asked.add_special_tokens, asked.watermark, asked.deadline_s) == (
        False,
        WatermarkOptions(enabled=False),
        7.5,
    )


FILLED = """{
  "model": "m", "requestId": "r", "text": "once", "adapter": "a", "cacheSalt": "s", "priority": 2,
  "completionCount": 3, "bestOf": 4, "truncatePromptTokenCount": 5, "addSpecialTokens": true,
  "watermark": {"enabled": true, "key": "k", "gamma": 0.25, "delta": 1.5}, "constraint": {"regex": "a+"},
  "speculation": true,
  "stopping": {"maxNewTokenCount": 6, "minNewTokenCount": 1, "stopSequences": ["x"], "stopTokenIds": [7],
    "ignoreEndOfSequence": true, "includeStopSequence": true, "timeLimit": "1.25s"},
  "output": {"tokenLogprobs": true, "topLogprobCount": 8, "promptLogprobs": true, "includeSpecialTokens": true,
    "processedLogprobs": true}
}"""


def test_every_field_arrives() -> None:
    asked = request_from_proto(json_format.Parse(FILLED, pb.GenerateRequest()), deadline_s=None)
    assert asked == GenerationRequest(
        prompt=TextPrompt("once"),
        model="m",
        request_id="r",
        stopping=StoppingOptions(
            max_new_token_count=6,
            min_new_token_count=1,
            stop_sequences=("x",),
            stop_token_ids=(7,),
            ignore_end_of_sequence=True,
            include_stop_sequence=True,
            time_limit_s=1.25,
        ),
        output=OutputOptions(
            token_logprobs=True,
            top_logprob_count=8,
            prompt_logprobs=True,
            include_special_tokens=True,
            processed_logprobs=True,
        ),
        constraint=Constraint(ConstraintKind.REGEX, "a+"),
        adapter="a",
        priority=2,
        cache_salt="s",
        completion_count=3,
        best_of=4,
        truncate_prompt_token_count=5,
        add_special_tokens=True,
        watermark=WatermarkOptions(enabled=True, key="k", gamma=0.25, delta=1.5),
        speculation=True,
    )


def test_no_field_of_the_request_is_forgotten() -> None:
    named = set(json_format.MessageToDict(json_format.Parse(FILLED, pb.GenerateRequest())))
    others = {"sampling", "tokenIds", "chat"}  # has its own test; the other forms of the prompt
    assert {field.camelcase_name for field in pb.GenerateRequest.DESCRIPTOR.fields} == named | others


def test_token_ids_are_a_prompt() -> None:
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[3, 1, 2]))
    assert request_from_proto(request, deadline_s=None).prompt == TokenPrompt((3, 1, 2))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (pb.Constraint(json_object=True), Constraint(ConstraintKind.JSON_OBJECT, "")),
        (pb.Constraint(json_schema="{}"), Constraint(ConstraintKind.JSON_SCHEMA, "{}")),
        (pb.Constraint(choices=pb.Choices(texts=["ja", "né"])), Constraint(ConstraintKind.CHOICES, '["ja", "né"]')),
        (pb.Constraint(lark_grammar="g"), Constraint(ConstraintKind.LARK, "g")),
        (pb.Constraint(ebnf_grammar="g"), Constraint(ConstraintKind.EBNF, "g")),
    ],
)
def test_constraints(message: pb.Constraint, expected: Constraint) -> None:
    assert request_from_proto(pb.GenerateRequest(constraint=message), deadline_s=None).constraint == expected


def test_a_conversation_arrives_with_its_tools() -> None:
    parameters = struct_pb2.Struct()
    parameters.update({"type": "object", "maximum": 5, "step": 0.5, "deep": [None, True, {"far": 1e300}]})
    chat = chat_pb2.ChatPrompt(
        messages=[
            chat_pb2.ChatMessage(
                role="user",
                content=[chat_pb2.ContentPart(text="look: "), chat_pb2.ContentPart(text="here")],
                name="ada",
            ),
            chat_pb2.ChatMessage(
                role="assistant",
                reasoning="hm",
                tool_calls=[chat_pb2.ToolCall(id="c", name="find", arguments_json="{}")],
            ),
            chat_pb2.ChatMessage(
                role="tool",
                tool_call_id="c",
                content=[chat_pb2.ContentPart(image=chat_pb2.ImagePart(data=b"png"))],
            ),
        ],
        tools=[chat_pb2.Tool(name="find", description="finds", parameters=parameters)],
        tool_choice=chat_pb2.ToolChoice(mode=chat_pb2.TOOL_CHOICE_MODE_NAMED, name="find"),
        continue_final_message=True,
        template="{{ messages }}",
    )
    chat.template_arguments.update({"enable_thinking": False})
    prompt = tokenize_prompt_from_proto(pb.TokenizeRequest(chat=chat))
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages == (
        ChatMessage(role="user", content="look: here", name="ada"),
        ChatMessage(
            role="assistant",
            content="",
            reasoning="hm",
            tool_calls=(ToolCall(id="c", name="find", arguments_json="{}"),),
        ),
        ChatMessage(role="tool", content="", has_image=True, tool_call_id="c"),
    )
    [tool] = prompt.tools
    assert tool.parameters == {"type": "object", "maximum": 5, "step": 0.5, "deep": [None, True, {"far": 1e300}]}
    assert isinstance(tool.parameters["maximum"], int)
    assert (prompt.tool_choice, prompt.tool_choice_name) == (ToolChoiceMode.NAMED, "find")
    assert prompt.template_arguments == {"enable_thinking": False}
    assert (prompt.continue_final_message, prompt.template) == (True, "{{ messages }}")


@pytest.mark.parametrize("number", [0.0, -3.0, 2.0**53, 1e300, 0.1, math.inf])
def test_numbers_of_a_template_keep_their_value(number: float) -> None:
    arguments = struct_pb2.Struct(fields={"n": struct_pb2.Value(number_value=number)})
    prompt = tokenize_prompt_from_proto(
        pb.TokenizeRequest(chat=chat_pb2.ChatPrompt(template_arguments=arguments)),
    )
    assert isinstance(prompt, ChatPrompt)
    value: Any = prompt.template_arguments["n"]
    assert value == number
    assert isinstance(value, int) is (number in (0.0, -3.0))


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.GenerateRequest(constraint=pb.Constraint()), "constraint"),
        (pb.GenerateRequest(constraint=pb.Constraint(json_object=False)), "constraint.json_object"),
        (
            pb.GenerateRequest(
                chat=chat_pb2.ChatPrompt(
                    messages=[
                        chat_pb2.ChatMessage(role="user"),
                        chat_pb2.ChatMessage(content=[chat_pb2.ContentPart(text="a"), chat_pb2.ContentPart()]),
                    ]
                )
            ),
            "chat.messages[1].content[1]",
        ),
        (
            pb.GenerateRequest(chat=chat_pb2.ChatPrompt(tool_choice=chat_pb2.ToolChoice(mode=99))),  # type: ignore[arg-type]
            "chat.tool_choice.mode",
        ),
    ],
)
def test_what_the_types_cannot_express_is_refused_by_path(request_: pb.GenerateRequest, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request_from_proto(request_, deadline_s=None)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_nothing_to_tokenize_is_none() -> None:
    assert tokenize_prompt_from_proto(pb.TokenizeRequest()) is None
    assert tokenize_prompt_from_proto(pb.TokenizeRequest(text="")) == TextPrompt("")
