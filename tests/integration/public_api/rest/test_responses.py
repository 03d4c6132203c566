"""OpenAI's responses, as OpenAI's own client speaks them, over a real router."""

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from headrace.client import AsyncClient

QUESTION = "Why is the sky blue?"
OPTIONS = {"model": "test-model", "max_output_tokens": 12, "temperature": 0}


@pytest.fixture
async def client(rest: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{rest.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_a_text_is_answered_like_over_grpc(rest: Any, client: openai.AsyncOpenAI) -> None:
    answer = await client.responses.create(input=QUESTION, instructions="Be brief.", metadata={"a": "b"}, **OPTIONS)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    async with AsyncClient(rest.router.address) as grpc_client:
        expected = await grpc_client.chat(turns, max_new_token_count=12, temperature=0.0)
    assert answer.output_text == expected.text
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (expected.usage.prompt_token_count, 12)
    assert (answer.metadata, answer.instructions) == ({"a": "b"}, "Be brief.")


async def test_a_stream_says_what_the_whole_answer_says(client: openai.AsyncOpenAI) -> None:
    whole = await client.responses.create(input=QUESTION, **OPTIONS)
    events = [event async for event in await client.responses.create(input=QUESTION, stream=True, **OPTIONS)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(deltas),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert "".join(deltas) == whole.output_text == events[-1].response.output_text
    assert events[-2].item == events[-1].response.output[0]
    assert events[-1].response.usage.output_tokens == whole.usage.output_tokens


async def test_the_clients_own_stream_helper(client: openai.AsyncOpenAI) -> None:
    text = (await client.responses.create(input=QUESTION, **OPTIONS)).output_text
    # The helper takes a completed response alone, so a stop sequence ends this one.
    stop = {"stop": text[len(text) // 2 :][:3]}
    async with client.responses.stream(input=QUESTION, extra_body=stop, **OPTIONS) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_response()
    assert (final.status, final.output_text) == ("completed", text[: text.index(stop["stop"])])


async def test_logprobs_are_those_of_the_text(rest: Any, client: openai.AsyncOpenAI) -> None:
    asked: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 2, **OPTIONS}
    whole = await client.responses.create(input=QUESTION, **asked)
    [part] = whole.output[0].content
    assert "".join(token.token for token in part.logprobs) == part.text
    async with AsyncClient(rest.router.address) as grpc_client:
        options: Any = {"max_new_token_count": 12, "temperature": 0.0, "token_logprobs": True, "top_logprob_count": 2}
        expected = await grpc_client.chat([{"role": "user", "content": QUESTION}], **options)
    told = [(entry.text, pytest.approx(entry.logprob)) for entry in expected.completions[0].logprobs]
    assert [(token.token, token.logprob) for token in part.logprobs] == told
    assert all(len(token.top_logprobs) == 2 for token in part.logprobs)
    assert all(bytes(token.bytes).decode() == token.token for token in part.logprobs)
    events = [event async for event in await client.responses.create(input=QUESTION, stream=True, **asked)]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [token.token for event in deltas for token in event.logprobs] == [token.token for token in part.logprobs]
    [done] = [event for event in events if event.type == "response.output_text.done"]
    assert [token.logprob for token in done.logprobs] == [token.logprob for token in part.logprobs]
    assert events[-1].response.output[0].content[0].logprobs == part.logprobs
    assert (whole.top_logprobs, (await client.responses.create(input=QUESTION, **OPTIONS)).top_logprobs) == (2, 0)


async def test_the_output_of_one_answer_is_input_of_the_next(rest: Any, client: openai.AsyncOpenAI) -> None:
    first = await client.responses.create(input=QUESTION, **OPTIONS)
    again = {"role": "user", "content": [{"type": "input_text", "text": "Again."}]}
    asked = {"role": "user", "content": QUESTION}
    dumped = [item.model_dump(exclude_none=True) for item in first.output]
    second = await client.responses.create(input=[asked, *dumped, again], **OPTIONS)
    turns = [asked, {"role": "assistant", "content": first.output_text}, {"role": "user", "content": "Again."}]
    async with AsyncClient(rest.router.address) as grpc_client:
        expected = await grpc_client.chat(turns, max_new_token_count=12, temperature=0.0)
    assert second.output_text == expected.text


async def test_fields_of_vllm_and_fields_without_effect(rest: Any) -> None:
    body = {"input": QUESTION, "max_output_tokens": 4, "top_k": 1, "store": True, "text": {"verbosity": "low"}}
    response = await rest.post("/v1/responses", **body)
    assert response.status_code == 200, response.text
    assert response.headers["x-headrace-ignored"] == "store, text.verbosity"
    assert response.json()["store"] is False


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"temperature": 9}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"extra_body": {"colour": "red"}}, "colour"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 99, "include": ["message.output_text.logprobs"]}, "top_logprobs"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "custom", "name": "x"}}, "tool_choice"),
        (
            {
                "instructions": "Look.",
                "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}],
            },
            "input[0].content",
        ),
    ],
)
async def test_a_wrong_field_is_named_before_anything_is_sent(
    client: openai.AsyncOpenAI, changes: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(**{"input": QUESTION, "stream": True} | OPTIONS | changes)
    assert caught.value.param == param


async def test_an_error_within_a_stream_is_its_last_event(rest: Any) -> None:
    body = {"input": QUESTION, "max_output_tokens": 3000, "stream": True}
    async with rest.http.stream("POST", "/v1/responses", json=body) as response:
        async with AsyncClient(rest.router.address) as grpc_client:
            await grpc_client.abort(response.headers["x-request-id"])
            lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
    last = json.loads(lines[-1].removeprefix("data: "))
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"]["message"]
