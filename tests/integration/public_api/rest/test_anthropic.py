"""Anthropic's protocol, as Anthropic's own client speaks it, over a real router."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest

from headrace.client import AsyncClient

TURNS = [{"role": "user", "content": "Why is the sky blue?"}]
OPTIONS = {"model": "test-model", "messages": TURNS, "max_tokens": 12, "extra_body": {"temperature": 0}}
"""The client has no keyword for the temperature any more; servers have."""


@pytest.fixture
async def client(rest: Any) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=rest.base_url, api_key="none", max_retries=0) as client:
        yield client


async def test_a_conversation_is_answered_like_over_grpc(rest: Any, client: anthropic.AsyncAnthropic) -> None:
    answer = await client.messages.create(**OPTIONS, system="Be brief.")
    turns = [{"role": "system", "content": "Be brief."}, *TURNS]
    async with AsyncClient(rest.router.address) as grpc_client:
        expected = await grpc_client.chat(turns, max_new_token_count=12, temperature=0.0)
    assert [block.text for block in answer.content] == [expected.text]
    assert (answer.stop_reason, answer.stop_sequence, answer.model) == ("max_tokens", None, "test-model")
    usage = answer.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == expected.usage.prompt_token_count
    assert usage.output_tokens == 12
    assert answer._request_id


async def test_a_stream_says_what_the_whole_answer_says(rest: Any, client: anthropic.AsyncAnthropic) -> None:
    whole = await client.messages.create(**OPTIONS)
    async with client.messages.stream(**OPTIONS) as stream:
        pieces = [piece async for piece in stream.text_stream]
        final = await stream.get_final_message()
    assert "".join(pieces) == whole.content[0].text == final.content[0].text
    assert len(pieces) > 1
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 12)


async def test_stopping_at_a_sequence_names_it(client: anthropic.AsyncAnthropic) -> None:
    text = (await client.messages.create(**OPTIONS)).content[0].text
    stop = text[len(text) // 2 :][:3]
    answer = await client.messages.create(**OPTIONS, stop_sequences=[stop])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)
    assert "".join(block.text for block in answer.content) == text[: text.index(stop)]


async def test_blocks_texts_and_a_prefilled_answer(rest: Any, client: anthropic.AsyncAnthropic) -> None:
    blocks = [
        {"type": "text", "text": "Why is ", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "the sky blue?"},
    ]
    plain = await client.messages.create(**OPTIONS)
    response = await client.messages.with_raw_response.create(
        **OPTIONS | {"messages": [{"role": "user", "content": blocks}], "metadata": {"user_id": "me"}}
    )
    assert (await response.parse()).content == plain.content
    assert response.headers["x-headrace-ignored"] == "metadata, cache_control"
    prefilled = [*TURNS, {"role": "assistant", "content": "Because"}]
    answer = await client.messages.create(**OPTIONS | {"messages": prefilled})
    async with AsyncClient(rest.router.address) as grpc_client:
        expected = await grpc_client.chat(
            prefilled, max_new_token_count=12, temperature=0.0, continue_final_message=True
        )
    assert answer.content[0].text == expected.text


async def test_tokens_are_counted_as_generation_counts_them(client: anthropic.AsyncAnthropic) -> None:
    count = await client.messages.count_tokens(model="test-model", messages=TURNS, system="Be brief.")
    usage = (await client.messages.create(**OPTIONS, system="Be brief.")).usage
    assert count.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"extra_body": {"temperature": 9}}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"extra_body": {"colour": "red"}}, "colour"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"stop_sequences": [""], "stream": True}, "stop_sequences[0]"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]},
            "messages[0].content[0].type",
        ),
    ],
)
async def test_a_wrong_field_is_named_before_anything_is_sent(
    client: anthropic.AsyncAnthropic, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        await client.messages.create(**OPTIONS | changes)
    error = caught.value.body
    assert error["type"] == "error"
    assert error["error"]["type"] == "invalid_request_error"
    assert error["error"]["message"].startswith(f"{field}: ")
    assert error["request_id"] == caught.value.request_id


async def test_an_image_for_a_model_that_sees_none_is_named_where_it_was(client: anthropic.AsyncAnthropic) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\]\.content"):
        await client.messages.create(
            **OPTIONS | {"messages": [{"role": "user", "content": [image]}]}, system="Look closely."
        )
    with pytest.raises(anthropic.NotFoundError):
        await client.messages.create(**OPTIONS | {"model": "other"})


async def test_an_error_within_a_stream_is_an_event(rest: Any) -> None:
    body = {"model": "", "messages": TURNS, "max_tokens": 3000, "stream": True}
    async with rest.http.stream("POST", "/v1/messages", json=body) as response:
        events = [line async for line in _lines_after_abort(rest, response)]
    last = json.loads(events[-1].removeprefix("data: "))
    assert last["type"] == "error"
    assert last["request_id"] == response.headers["x-request-id"]


async def _lines_after_abort(rest: Any, response: Any) -> AsyncIterator[str]:
    async with AsyncClient(rest.router.address) as grpc_client:
        async for line in response.aiter_lines():
            if line.startswith("event: message_start"):
                await grpc_client.abort(response.headers["x-request-id"])
            if line:
                yield line
