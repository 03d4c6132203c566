"""What is wrong is told in the caller's words: its names for the field, and for others that the sentence mentions."""

from typing import Any

import pytest

from headrace.services.rest.responses_fields import ResponsesBody

TURNS = [{"role": "user", "content": "x"}]
LONG = "word " * 5000
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": TURNS, "max_tokens": 2} | fields


def text(**fields: Any) -> dict[str, Any]:
    return {"prompt": "x", "max_tokens": 2} | fields


def tgi(**parameters: Any) -> dict[str, Any]:
    return {"inputs": "x", "parameters": {"max_new_tokens": 2} | parameters}


STOPS = [str(number) for number in range(17)]

TOLD: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/completions", text(n=2, best_of=1), "best_of: must be in [2, 16], from n to the limit, is 1"),
    (
        "/v1/completions",
        text(prompt=LONG),
        "prompt: must have at most 4000 tokens, has 5001; set truncate_prompt_tokens to keep the last ones",
    ),
    (
        "/generate",
        {"inputs": LONG},
        "inputs: must have at most 4000 tokens, has 5001; set truncate to keep the last ones",
    ),
    (
        "/v1/messages",
        {"model": "", "max_tokens": 2, "messages": [{"role": "user", "content": LONG}]},
        "messages: must have at most 4000 tokens, has 5031",
    ),
    ("/v1/completions", text(prompt=["a", ""]), "prompt[1]: must not be empty"),
    ("/v1/completions", text(prompt=["a", ""], stream=True), "prompt[1]: must not be empty"),
    ("/v1/completions", text(prompt=[[5], [60_000]]), "prompt[1]: must be in [0, 49152), is 60000"),
    ("/v1/completions", text(prompt=[[5], [-1]], stream=True), "prompt[1]: must be in [0, 4294967295]"),
    ("/v1/chat/completions", chat(min_tokens=5), "min_tokens: must not be more than max_tokens, 2, is 5"),
    (
        "/v1/chat/completions",
        {"messages": TURNS, "max_completion_tokens": 2, "min_tokens": 5},
        "min_tokens: must not be more than max_completion_tokens, 2, is 5",
    ),
    (
        "/v1/chat/completions",
        chat(chat_template_kwargs={"messages": []}),
        "chat_template_kwargs.messages: is set by the prompt itself",
    ),
    (
        "/v1/chat/completions",
        chat(chat_template="x"),
        "chat_template: this server renders conversations with the model's own template only",
    ),
    (
        "/v1/chat/completions",
        chat(reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "high"}),
        "reasoning_effort: cannot be given beside chat_template_kwargs that have it",
    ),
    ("/v1/chat/completions", chat(messages=[]), "messages: must have at least 1 entries, has 0"),
    ("/generate", tgi(stop=STOPS), "stop: must have at most 16 entries, has 17"),
    ("/generate", tgi(stop_sequences=STOPS), "stop_sequences: must have at most 16 entries, has 17"),
    ("/generate_stream", tgi(stop_sequences=["a", ""]), "stop_sequences[1]: must not be empty"),
    ("/invocations", tgi(max_new_tokens=0), "max_new_tokens: must be at least 1, is 0"),
    ("/invocations", chat(max_tokens=0), "max_tokens: must be at least 1, is 0"),
    ("/invocations", text(best_of=99), "best_of: must be in [1, 16], from n to the limit, is 99"),
    ("/invocations", chat(adapter="a" * 3), "no adapter 'aaa' is loaded"),
    ("/chat_tokenize", chat(chat_template_kwargs={"tools": []}), "chat_template_kwargs.tools: is set by the prompt"),
    (
        "/v1/embeddings",
        {"input": [[5], [5, 60_000]], "pooling": "mean"},
        "input[1][1]: must be in [0, 49152), is 60000",
    ),
    ("/v1/responses", {"input": ["x"]}, "input[0]: must be an object with a type"),
    ("/v1/chat/completions", chat(model="chat.best_of"), "model 'chat.best_of' is not served here"),
]


@pytest.mark.parametrize(("path", "body", "message"), TOLD)
async def test_it_is_told_in_the_callers_words(rest: Any, path: str, body: dict[str, Any], message: str) -> None:
    response = await rest.http.post(path, json=body)
    assert 400 <= response.status_code < 500, response.text
    error = response.json()["error"]
    told = error if isinstance(error, str) else error["message"]
    assert told.startswith(message), told
    if "truncate" not in message:
        assert "truncate" not in told
    await rest.idle()


async def test_a_switch_for_tools_without_tools_is_listed(rest: Any) -> None:
    for path, body in (
        ("/v1/chat/completions", chat(parallel_tool_calls=False)),
        ("/v1/responses", {"input": "x", "max_output_tokens": 2, "parallel_tool_calls": True}),
    ):
        response = await rest.http.post(path, json=body)
        assert (response.status_code, response.headers["x-headrace-ignored"]) == (200, "parallel_tool_calls")


def test_a_summary_beside_the_reasoning_itself_is_listed() -> None:
    """The model of these tests has no place for reasoning, so the body is asked."""
    thoughts = {
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "short"}],
        "content": [{"type": "reasoning_text", "text": "long"}],
    }
    assert ResponsesBody.model_validate({"input": [*TURNS, thoughts, *TURNS]}).ignored() == "input.summary"


async def test_what_is_no_switch_is_no_strict_tool(rest: Any) -> None:
    tool = {"type": "function", "function": {**TOOL["function"], "strict": "yes"}}  # type: ignore[dict-item]
    response = await rest.post("/v1/chat/completions", **chat(tools=[tool]))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "tools[0].function.strict")
