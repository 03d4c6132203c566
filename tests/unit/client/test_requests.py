"""Every field of the contract is reachable by keyword, keeps its presence, and names itself when it is wrong."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor

from headrace.client import (
    Choices,
    EbnfGrammar,
    Image,
    InvalidRequest,
    JsonObject,
    JsonSchema,
    LarkGrammar,
    LengthPenalty,
    Message,
    NamedTool,
    Regex,
    Tool,
    ToolCall,
    Watermark,
)
from headrace.client.options import CallOptions, ChatOptions, GenerateOptions, TokenizeChatOptions, TokenizeOptions
from headrace.client.requests import (
    chat_request,
    detokenize_request,
    generate_request,
    tokenize_chat_request,
    tokenize_request,
)
from headrace.v1 import chat_pb2 as chat_pb
from headrace.v1 import generate_service_pb2 as generate_pb
from headrace.v1 import sampling_pb2 as sampling_pb

GROUPS = {
    "sampling": sampling_pb.SamplingParams,
    "stopping": generate_pb.StoppingRules,
    "output": generate_pb.OutputOptions,
}
RENAMED = {"time_limit": "time_limit_s"}
PROMPTS = {"text", "token_ids", "chat"}

EVERY_OPTION: GenerateOptions = {
    "model": "m",
    "request_id": "r-1",
    "adapter": "a",
    "priority": -3,
    "cache_salt": "tenant",
    "completion_count": 2,
    "best_of": 4,
    "truncate_prompt_token_count": 100,
    "add_special_tokens": False,
    "temperature": 0.0,
    "top_k": 40,
    "top_p": 0.5,
    "min_p": 0.25,
    "typical_p": 0.75,
    "seed": 2**64 - 1,
    "repetition_penalty": 1.5,
    "frequency_penalty": -0.5,
    "presence_penalty": 0.0,
    "logit_bias": {7: -100.0, 9: 2.5},
    "banned_words": ["foo", "bar"],
    "length_penalty": LengthPenalty(start_index=3, decay_factor=1.5),
    "max_new_token_count": 64,
    "min_new_token_count": 0,
    "stop_sequences": ["\n\n", "END"],
    "stop_token_ids": [1, 2],
    "ignore_end_of_sequence": True,
    "include_stop_sequence": False,
    "time_limit_s": 1.5,
    "token_logprobs": True,
    "top_logprob_count": 5,
    "prompt_logprobs": False,
    "include_special_tokens": True,
    "processed_logprobs": True,
    "constraint": Regex("[a-z]+"),
    "watermark": Watermark(key="k", gamma=0.25),
    "speculation": False,
}
EVERY_FIELD = generate_pb.GenerateRequest(
    text="Once",
    model="m",
    request_id="r-1",
    adapter="a",
    priority=-3,
    cache_salt="tenant",
    completion_count=2,
    best_of=4,
    truncate_prompt_token_count=100,
    add_special_tokens=False,
    sampling=sampling_pb.SamplingParams(
        temperature=0.0,
        top_k=40,
        top_p=0.5,
        min_p=0.25,
        typical_p=0.75,
        seed=2**64 - 1,
        repetition_penalty=1.5,
        frequency_penalty=-0.5,
        presence_penalty=0.0,
        logit_bias={7: -100.0, 9: 2.5},
        banned_words=["foo", "bar"],
        length_penalty=sampling_pb.LengthPenalty(start_index=3, decay_factor=1.5),
    ),
    stopping=generate_pb.StoppingRules(
        max_new_token_count=64,
        min_new_token_count=0,
        stop_sequences=["\n\n", "END"],
        stop_token_ids=[1, 2],
        ignore_end_of_sequence=True,
        include_stop_sequence=False,
    ),
    output=generate_pb.OutputOptions(
        token_logprobs=True,
        top_logprob_count=5,
        prompt_logprobs=False,
        include_special_tokens=True,
        processed_logprobs=True,
    ),
    constraint=generate_pb.Constraint(regex="[a-z]+"),
    watermark=generate_pb.Watermark(enabled=True, key="k", gamma=0.25),
    speculation=False,
)


def names(descriptor: Descriptor) -> set[str]:
    return {RENAMED.get(field.name, field.name) for field in descriptor.fields}


def test_every_field_of_the_contract_is_an_option_and_no_other() -> None:
    flat = names(generate_pb.GenerateRequest.DESCRIPTOR) - PROMPTS - set(GROUPS)
    for group in GROUPS.values():
        flat |= names(group.DESCRIPTOR)
    assert set(GenerateOptions.__annotations__) - set(CallOptions.__annotations__) == flat
    chat_only = set(ChatOptions.__annotations__) - set(GenerateOptions.__annotations__)
    assert chat_only == names(chat_pb.ChatPrompt.DESCRIPTOR) - {"messages"}
    tokenize = names(generate_pb.TokenizeRequest.DESCRIPTOR) - PROMPTS
    assert set(TokenizeOptions.__annotations__) - set(CallOptions.__annotations__) == tokenize
    tokenize_chat = set(TokenizeChatOptions.__annotations__) - set(CallOptions.__annotations__)
    assert tokenize_chat == chat_only | tokenize - {"add_special_tokens"}


def test_a_full_request_equals_the_message_written_by_hand() -> None:
    assert set(EVERY_OPTION) == set(GenerateOptions.__annotations__) - set(CallOptions.__annotations__)
    expected = generate_pb.GenerateRequest()
    expected.CopyFrom(EVERY_FIELD)
    expected.stopping.time_limit.FromMilliseconds(1500)
    assert generate_request("Once", EVERY_OPTION) == expected


def test_what_is_left_out_or_none_stays_unset() -> None:
    every_name = set(GenerateOptions.__annotations__) - set(CallOptions.__annotations__)
    nothing: Any = dict.fromkeys(every_name)
    assert generate_request("Once", nothing) == generate_request("Once", {})
    assert generate_request("Once", {}) == generate_pb.GenerateRequest(text="Once")
    assert generate_request("Once", {}).ListFields() == [
        (generate_pb.GenerateRequest.DESCRIPTOR.fields_by_name["text"], "Once")
    ]


def test_a_prompt_is_a_text_or_token_ids_even_when_empty() -> None:
    assert generate_request([3, 1, 2], {}).token_ids.ids == [3, 1, 2]
    assert generate_request((), {}).WhichOneof("prompt") == "token_ids"
    assert generate_request("", {}).WhichOneof("prompt") == "text"


def test_a_single_text_is_not_taken_for_its_letters() -> None:
    request = generate_request("Once", {"stop_sequences": "END", "banned_words": "foo"})
    assert request.stopping.stop_sequences == ["END"]
    assert request.sampling.banned_words == ["foo"]


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        (JsonObject(), generate_pb.Constraint(json_object=True)),
        (JsonSchema({"type": "object"}), generate_pb.Constraint(json_schema=json.dumps({"type": "object"}))),
        (JsonSchema('{"type":"object"}'), generate_pb.Constraint(json_schema='{"type":"object"}')),
        (Regex("a+"), generate_pb.Constraint(regex="a+")),
        (Choices(["yes", "no"]), generate_pb.Constraint(choices=generate_pb.Choices(texts=["yes", "no"]))),
        (LarkGrammar("start: A"), generate_pb.Constraint(lark_grammar="start: A")),
        (EbnfGrammar("root ::= a"), generate_pb.Constraint(ebnf_grammar="root ::= a")),
    ],
)
def test_every_kind_of_constraint(constraint: Any, expected: generate_pb.Constraint) -> None:
    assert generate_request("Once", {"constraint": constraint}).constraint == expected


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"seed": -1}, "sampling.seed"),
        ({"temperature": "hot"}, "sampling.temperature"),
        ({"top_k": 1.5}, "sampling.top_k"),
        ({"logit_bias": {-1: 0.0}}, "sampling.logit_bias"),
        ({"length_penalty": LengthPenalty(start_index=2**40, decay_factor=1.0)}, "sampling.length_penalty.start_index"),
        ({"max_new_token_count": 2**31}, "stopping.max_new_token_count"),
        ({"stop_token_ids": 5}, "stopping.stop_token_ids"),
        ({"time_limit_s": float("inf")}, "stopping.time_limit"),
        ({"token_logprobs": "yes"}, "output.token_logprobs"),
        ({"cache_salt": "\ud800"}, "cache_salt"),
        ({"priority": 0.5}, "priority"),
    ],
)
def test_a_value_that_does_not_fit_names_its_field(options: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        generate_request("Once", options)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_a_number_that_does_not_fit_is_told_its_range_and_not_repeated() -> None:
    with pytest.raises(InvalidRequest, match=r"top_k: must be in \[-2147483648, 2147483647\]$"):
        generate_request("Once", {"top_k": 10**30})
    with pytest.raises(InvalidRequest, match=r"stop_token_ids: must be in \[0, 4294967295\]$"):
        generate_request("Once", {"stop_token_ids": [7] * 1000 + [-1]})


def test_what_says_nothing_in_dumps_of_openais_types_is_taken() -> None:
    """The place of a call that was put together from a stream, too: its list says it."""
    function = {"name": "n", "arguments": "{}"}
    calls = [{"index": index, "id": f"c{index}", "type": "function", "function": function} for index in range(2)]
    said = {"role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": None}
    request = chat_request([said | {"tool_calls": calls}], {"template_arguments": {"x": nested(22)}})
    assert [call.id for call in request.chat.messages[0].tool_calls] == ["c0", "c1"]
    assert generate_pb.GenerateRequest.FromString(request.SerializeToString()) == request


@pytest.mark.parametrize(("prompt", "field"), [(["a"], "token_ids.ids"), ([-1], "token_ids.ids"), ("\ud800", "text")])
def test_a_prompt_that_does_not_fit_names_its_field(prompt: Any, field: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^{field}: "):
        generate_request(prompt, {})


def test_an_unknown_option_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(TypeError, match=r"unknown option 'temprature'; did you mean 'temperature'\?"):
        generate_request("Once", {"temprature": 1.0})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(TypeError, match=r"unknown option 'tools'"):
        generate_request("Once", {"tools": []})  # type: ignore[typeddict-unknown-key]


def test_a_conversation_typed() -> None:
    messages = [
        Message("system", "Be brief."),
        Message("user", ["What is this?", Image(data=b"\x89PNG"), Image(url="https://example.org/a.png")], name="Ada"),
        Message("assistant", tool_calls=[ToolCall(id="c1", name="look", arguments_json="{}")], reasoning="hm"),
        Message("tool", "a cat", tool_call_id="c1"),
    ]
    options: ChatOptions = {
        "tools": [Tool(name="look", description="Looks.", parameters={"type": "object"})],
        "tool_choice": NamedTool("look"),
        "template_arguments": {"enable_thinking": False, "depth": [1, {"x": None}]},
        "continue_final_message": True,
        "template": "{{ messages }}",
        "seed": 1,
    }
    request = chat_request(messages, options)
    image = chat_pb.ContentPart(image=chat_pb.ImagePart(data=b"\x89PNG"))
    linked = chat_pb.ContentPart(image=chat_pb.ImagePart(url="https://example.org/a.png"))
    expected = chat_pb.ChatPrompt(
        messages=[
            chat_pb.ChatMessage(role="system", content=[chat_pb.ContentPart(text="Be brief.")]),
            chat_pb.ChatMessage(
                role="user", name="Ada", content=[chat_pb.ContentPart(text="What is this?"), image, linked]
            ),
            chat_pb.ChatMessage(
                role="assistant",
                reasoning="hm",
                tool_calls=[chat_pb.ToolCall(id="c1", name="look", arguments_json="{}")],
            ),
            chat_pb.ChatMessage(role="tool", tool_call_id="c1", content=[chat_pb.ContentPart(text="a cat")]),
        ],
        tools=[chat_pb.Tool(name="look", description="Looks.", parameters_json='{"type": "object"}')],
        tool_choice=chat_pb.ToolChoice(mode=chat_pb.TOOL_CHOICE_MODE_NAMED, name="look"),
        template_arguments={"enable_thinking": False, "depth": [1, {"x": None}]},
        continue_final_message=True,
        template="{{ messages }}",
    )
    assert request.chat == expected
    assert request.sampling.seed == 1
    assert tokenize_chat_request(messages, {"tools": options["tools"]}).chat.tools == expected.tools


def test_a_conversation_as_openai_writes_it() -> None:
    messages: list[Mapping[str, object]] = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw==", "detail": "auto"}},
                {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "annotations": [],
            "reasoning_content": "hm",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "a cat"},
    ]
    typed = [
        Message("developer", "Be brief."),
        Message("user", ["What is this?", Image(data=b"\x89PNG"), Image(url="https://example.org/a.png")]),
        Message("assistant", tool_calls=[ToolCall(id="c1", name="look", arguments_json="{}")], reasoning="hm"),
        Message("tool", "a cat", tool_call_id="c1"),
    ]
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}, "strict": False}}
    choice = {"type": "function", "function": {"name": "look"}}
    plain = chat_request(messages, {"tools": [tool], "tool_choice": choice})
    assert plain == chat_request(
        typed,
        {"tools": [Tool(name="look", parameters={"type": "object"})], "tool_choice": NamedTool("look")},
    )


@pytest.mark.parametrize("mode", ["auto", "none", "required"])
def test_the_choice_of_tools_by_word(mode: Any) -> None:
    chosen = chat_request([Message("user", "hi")], {"tool_choice": mode}).chat.tool_choice.mode
    assert chat_pb.ToolChoiceMode.Name(chosen) == f"TOOL_CHOICE_MODE_{mode.upper()}"


def test_a_silent_assistant_has_no_part_and_a_silent_user_an_empty_one() -> None:
    call = ToolCall(id="c", name="n", arguments_json="{}")
    request = chat_request([Message("assistant", "", tool_calls=[call]), Message("user", "")], {})
    assert [len(message.content) for message in request.chat.messages] == [0, 1]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"content": "hi"}, "chat.messages[0].role"),
        ({"role": 5}, "chat.messages[0].role"),
        ("hi", "chat.messages[0]"),
        ({"role": "user", "content": 5}, "chat.messages[0].content"),
        ({"role": "user", "content": [{"type": "video"}]}, "chat.messages[0].content[0].type"),
        ({"role": "user", "content": [{"text": "hi"}]}, "chat.messages[0].content[0].type"),
        ({"role": "user", "content": "hi", "audio": {"id": "x"}}, "chat.messages[0].audio"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,§"}}]},
            "chat.messages[0].content[0].image_url.url",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x", "detail": "high"}}]},
            "chat.messages[0].content[0].image_url.detail",
        ),
        ({"role": "assistant", "tool_calls": [{"id": "c"}]}, "chat.messages[0].tool_calls[0].function"),
        ({"role": "assistant", "tool_calls": "x"}, "chat.messages[0].tool_calls"),
        ({"role": "user", "content": "hi", "colour": 0}, "chat.messages[0].colour"),
        ({"role": "user", "content": "hi", "colour": []}, "chat.messages[0].colour"),
        (Message("\ud800", "hi"), "chat.messages[0].role"),
        (Message("user", ["\ud800"]), "chat.messages[0].content[0].text"),
    ],
)
def test_a_message_that_does_not_fit_names_its_field(message: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat_request([message], {})
    assert [violation.field for violation in caught.value.violations] == [field]


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"tools": [{"type": "retrieval"}]}, "chat.tools[0].type"),
        ({"tools": [{"function": {"name": "n", "parameters": 5}}]}, "chat.tools[0].function.parameters"),
        ({"tools": [Tool(name="n", parameters={"x": object()})]}, "chat.tools[0].parameters"),
        ({"tool_choice": "sometimes"}, "chat.tool_choice"),
        ({"template_arguments": {"x": object()}}, "chat.template_arguments"),
        ({"template_arguments": {"x": 10**400}}, "chat.template_arguments"),
        ({"template_arguments": {"x": nested(24)}}, "chat.template_arguments"),
    ],
)
def test_an_option_of_the_template_that_does_not_fit_names_its_field(options: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat_request([Message("user", "hi")], options)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_an_image_has_one_source() -> None:
    with pytest.raises(ValueError, match="either data or url"):
        Image()
    with pytest.raises(ValueError, match="either data or url"):
        Image(data=b"x", url="https://x")


def test_tokenizing_both_ways() -> None:
    assert tokenize_request(
        "Once", {"model": "m", "add_special_tokens": False, "include_offsets": True}
    ) == generate_pb.TokenizeRequest(text="Once", model="m", add_special_tokens=False, include_offsets=True)
    assert detokenize_request([1, 2], "m", include_special_tokens=False) == generate_pb.DetokenizeRequest(
        token_ids=[1, 2], model="m", include_special_tokens=False
    )
