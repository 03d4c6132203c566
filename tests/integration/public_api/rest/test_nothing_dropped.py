"""What a body asks for is done, refused with the caller's own name for it, or listed as ignored: never passed over."""

from typing import Any

from headrace.services.rest.openai_chat import ChatBody
from headrace.services.rest.responses_fields import ResponsesBody

TURNS = [{"role": "user", "content": "x"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CHAT = {"messages": TURNS, "max_tokens": 2}
RESPONSE = {"input": "x", "max_output_tokens": 2}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", CHAT | {"stream_options": {"include_usage": True}}, "stream_options"),
    (
        "/v1/chat/completions",
        CHAT | {"response_format": {"type": "text", "json_schema": {"name": "n", "schema": SCHEMA}}},
        "response_format.json_schema",
    ),
    (
        "/v1/chat/completions",
        CHAT | {"response_format": {"type": "json_object", "json_schema": {"name": "n", "schema": SCHEMA}}},
        "response_format.json_schema",
    ),
    (
        "/v1/chat/completions",
        CHAT
        | {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}, "value": SCHEMA}},
        "response_format.value",
    ),
    ("/v1/chat/completions", CHAT | {"response_format": {"type": "text", "value": "a"}}, "response_format.value"),
    ("/v1/chat/completions", CHAT | {"logit_bias": {"1": 1, "01": 2}}, "logit_bias[01]"),
    ("/v1/chat/completions", CHAT | {"logit_bias": {"9" * 5000: 1}}, f"logit_bias[{'9' * 5000}]"),
    ("/v1/chat/completions", CHAT | {"messages": [TURNS[0] | {"colour": 0}]}, "messages[0].colour"),
    ("/v1/chat/completions", CHAT | {"messages": [TURNS[0] | {"colour": []}]}, "messages[0].colour"),
    ("/v1/chat/completions", CHAT | {"chat_template_kwargs": {"a": 10**400}}, "chat_template_kwargs"),
    ("/v1/chat/completions", CHAT | {"top_k": 10**30}, "top_k"),
    ("/v1/chat/completions", {"messages": TURNS, "max_completion_tokens": 0}, "max_completion_tokens"),
    ("/v1/chat/completions", CHAT | {"guided_regex": "("}, "guided_regex"),
    ("/v1/chat/completions", CHAT | {"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ("/v1/completions", {"prompt": "x", "max_tokens": 2, "logprobs": 21}, "logprobs"),
    ("/v1/completions", {"prompt": "x", "max_tokens": 2, "guided_regex": "(", "stream": True}, "guided_regex"),
    ("/v1/responses", RESPONSE | {"text": {"format": {"type": "text", "schema": SCHEMA}}}, "text.format.schema"),
    ("/v1/responses", RESPONSE | {"guided_regex": "("}, "guided_regex"),
    (
        "/v1/responses",
        RESPONSE
        | {"input": [*TURNS, {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"}, *TURNS]},
        "input[1].arguments",
    ),
]

IGNORED: list[tuple[str, dict[str, Any], str]] = [
    (
        "/v1/chat/completions",
        CHAT | {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
    ),
    (
        "/v1/responses",
        RESPONSE
        | {
            "input": [
                {"type": "message", "id": "m", "status": "completed", "phase": "final", "role": "user"} | TURNS[0]
            ]
        },
        "input.id, input.status, input.phase",
    ),
    (
        "/v1/responses",
        RESPONSE | {"stream": True, "stream_options": {"include_usage": True}},
        "stream_options.include_usage",
    ),
    ("/generate", {"inputs": "x", "stream": True, "parameters": {"max_new_tokens": 2}}, "stream"),
    ("/generate", {"inputs": "x", "parameters": {"max_new_tokens": 2, "top_n_tokens": 2}}, "parameters.top_n_tokens"),
    ("/generate_stream", {"inputs": "x", "parameters": {"max_new_tokens": 2, "top_n_tokens": 2}}, ""),
    ("/", {"inputs": "x", "stream": True, "parameters": {"max_new_tokens": 2, "top_n_tokens": 2}}, ""),
    ("/tokenize", {"inputs": "x", "stream": True, "parameters": {"top_n_tokens": 2}}, "parameters, stream"),
    ("/chat_tokenize", CHAT | {"temperature": 0.5, "user": "u"}, "temperature, user, max_tokens"),
]


async def test_it_is_refused_by_the_callers_name(rest: Any) -> None:
    for path, body, field in REFUSED:
        response = await rest.http.post(path, json=body)
        assert response.status_code == 400, (path, body, response.text)
        assert response.json()["error"]["param"] == field


async def test_a_part_that_a_stream_lacks_is_refused(rest: Any) -> None:
    for name, value in (("decoder_input_details", True), ("best_of", 2)):
        parameters = {"max_new_tokens": 2, "do_sample": True, name: value}
        response = await rest.post("/generate_stream", inputs="x", parameters=parameters)
        assert (response.status_code, f"parameters.{name}" in response.text) == (422, True)


async def test_it_is_listed(rest: Any) -> None:
    for path, body, names in IGNORED:
        response = await rest.http.post(path, json=body)
        assert response.status_code == 200, (path, body, response.text)
        assert response.headers.get("x-headrace-ignored", "") == names, path


def test_what_a_format_says_of_itself_is_listed() -> None:
    """The engine of these tests holds nothing to a format, so the bodies are asked."""
    named = {"name": "n", "description": "d", "schema": SCHEMA}
    chat = ChatBody.model_validate(CHAT | {"response_format": {"type": "json_schema", "json_schema": named}})
    assert chat.ignored() == "response_format.json_schema.description"
    response = ResponsesBody.model_validate(RESPONSE | {"text": {"format": {"type": "json_schema"} | named}})
    assert response.ignored() == "text.format.description"


AMBIGUOUS = [
    (b'{"prompt":"x","max_tokens":2,"max_tokens":3}', "'max_tokens' twice"),
    (b'{"prompt":"x","max_tokens":2,"metadata":{"a":{"b":1,"b":2}}}', "'b' twice"),
    (b'{"prompt":"x","max_tokens":2,"metadata":{"a":NaN}}', "NaN"),
    (b'{"prompt":"x","max_tokens":2,"metadata":{"a":[-Infinity]}}', "-Infinity"),
    (b'{"prompt":"x","max_tokens":2,"metadata":{"a":1e999}}', "too large"),
]


async def test_json_that_parsers_read_in_several_ways_is_refused(rest: Any) -> None:
    for body, reason in AMBIGUOUS:
        response = await rest.http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
        assert response.status_code == 400, body
        assert reason in response.json()["error"]["message"]


async def test_nobody_is_sent_elsewhere(rest: Any) -> None:
    """A redirect would name the host that the caller claimed to ask."""
    for path in ("/health/", "/generate/", "/ui/"):
        response = await rest.http.get(path, headers={"host": "elsewhere.example"})
        assert (response.status_code, "location" in response.headers) == (404, False)
