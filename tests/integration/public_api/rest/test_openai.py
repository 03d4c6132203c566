"""OpenAI's protocol, as OpenAI's own client speaks it, over a real router."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from peft_folders import write_peft_folder

from headrace.shard.engines.fake import FakeOptions
from headrace.v1.router_service_pb2 import LoadAdapterRequest

QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]


@pytest.fixture
async def client(rest: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{rest.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_a_conversation_is_answered_like_over_grpc(rest: Any, client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="test-model", messages=QUESTION, max_tokens=12, temperature=0, seed=7
    )
    again = await client.chat.completions.create(
        model="tgi", messages=QUESTION, max_completion_tokens=12, temperature=0
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].message.content == again.choices[0].message.content
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 12)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    assert (answer.model, answer.object) == ("test-model", "chat.completion")


async def test_a_stream_says_what_the_whole_answer_says(rest: Any, client: openai.AsyncOpenAI) -> None:
    options = {"model": "test-model", "messages": QUESTION, "max_tokens": 20, "temperature": 0, "n": 2}
    whole = await client.chat.completions.create(**options)
    texts = ["", ""]
    reasons = {}
    usage = None
    stream = await client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == {0: "length", 1: "length"}
    assert usage.completion_tokens == whole.usage.completion_tokens == 40


async def test_logprobs_of_both_endpoints(client: openai.AsyncOpenAI) -> None:
    options = {
        "model": "",
        "messages": QUESTION,
        "max_tokens": 3,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
    }
    entries = (await client.chat.completions.create(**options)).choices[0].logprobs.content
    assert len(entries) == 3
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in entries)
    streamed = []
    async for chunk in await client.chat.completions.create(**options, stream=True):
        streamed += [entry for choice in chunk.choices if choice.logprobs for entry in choice.logprobs.content]
    assert streamed == entries
    text = await client.completions.create(model="", prompt="Once", max_tokens=3, temperature=0, logprobs=2)
    logprobs = text.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 3
    assert logprobs.text_offset == [0, len(logprobs.tokens[0]), len(logprobs.tokens[0] + logprobs.tokens[1])]


async def test_an_option_that_the_engine_lacks_is_refused_by_openais_name(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="", messages=QUESTION, extra_body={"min_p": 0.1})
    assert (caught.value.param, caught.value.code) == ("min_p", "unsupported")


async def test_an_adapter_that_is_not_loaded_is_not_found(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no adapter 'x' is loaded"):
        await client.chat.completions.create(model="", messages=QUESTION, extra_body={"adapter": "x"})


async def test_prompts_of_every_form(rest: Any, client: openai.AsyncOpenAI) -> None:
    def complete(prompt: Any, **options: Any) -> Any:
        return client.completions.create(model="test-model", prompt=prompt, max_tokens=6, temperature=0, **options)

    one = await complete("Once upon a time")
    two = await complete(["Once upon a time", "In the beginning"])
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.choices[0].text == one.choices[0].text
    assert two.usage.completion_tokens == 12
    ids = await complete([5, 6, 7])
    assert (await complete([[5, 6, 7], [8, 9]])).choices[0].text == ids.choices[0].text
    assert (await complete("Once", echo=True)).choices[0].text.startswith("Once")
    texts = ["", ""]
    async for chunk in await complete(["Once upon a time", "In the beginning"], stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in two.choices]


async def test_stop_is_a_text_or_a_list(rest: Any, client: openai.AsyncOpenAI) -> None:
    whole = (await client.completions.create(model="", prompt="Once", max_tokens=20, temperature=0)).choices[0].text
    stop = whole[len(whole) // 2 :][:3]
    for form in (stop, [stop]):
        choice = (
            await client.completions.create(model="", prompt="Once", max_tokens=20, temperature=0, stop=form)
        ).choices[0]
        assert choice.finish_reason == "stop"
        assert choice.text == whole[: whole.index(stop)]


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"temperature": 9}, "temperature"),
        ({"extra_body": {"top_k": -5}}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logit_bias": {"x": 1}}, "logit_bias[x]"),
        ({"extra_body": {"tempreature": 1}}, "tempreature"),
        ({"extra_body": {"guided_regex": "a", "guided_json": {}}}, "guided_regex"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"messages": [{"role": "user", "content": "x", "colour": "red"}]}, "messages[0].colour"),
        ({"messages": []}, "messages"),
        ({"stream": True, "top_p": 7}, "top_p"),
    ],
)
async def test_a_wrong_field_is_named_before_anything_is_sent(
    rest: Any, client: openai.AsyncOpenAI, extra: dict[str, Any], param: str
) -> None:
    options = {"model": "test-model", "messages": QUESTION, "max_tokens": 4} | extra
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(**options)
    assert caught.value.param == param
    assert param in caught.value.message


async def test_fields_without_effect_are_listed(rest: Any) -> None:
    response = await rest.post(
        "/v1/chat/completions", messages=QUESTION, max_tokens=2, user="me", store=False, metadata=None
    )
    assert response.status_code == 200
    assert response.headers["x-headrace-ignored"] == "user, store"


async def test_an_adapter_is_a_model_of_its_own(rest: Any, client: openai.AsyncOpenAI, tmp_path: Path) -> None:
    async def ask(model: str, **extra: str) -> str:
        answer = await client.chat.completions.create(
            model=model, messages=QUESTION, max_tokens=6, temperature=0, extra_body=extra
        )
        assert answer.choices[0].message.content is not None
        return answer.choices[0].message.content

    order = LoadAdapterRequest(name="poets/small", source=str(write_peft_folder(tmp_path / "poet")))
    await rest.router.router.LoadAdapter(order)
    listed = [model async for model in client.models.list()]
    assert [(model.id, getattr(model, "parent", None)) for model in listed] == [
        ("test-model", None),
        ("poets/small", "test-model"),
    ]
    assert (await client.models.retrieve("poets/small")).id == "poets/small"
    by_model, by_field, plain = await ask("poets/small"), await ask("", adapter="poets/small"), await ask("test-model")
    assert by_model == by_field != plain
    with pytest.raises(openai.BadRequestError) as caught:
        await ask("poets/small", adapter="other")
    assert caught.value.param == "adapter"


async def test_models_are_listed(rest: Any, client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["test-model"]
    assert (await client.models.retrieve("test-model")).id == "test-model"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError, match="other"):
        await client.chat.completions.create(model="other", messages=QUESTION)


async def test_a_full_queue_is_429_with_a_time(deploy_rest: Callable[..., Any]) -> None:
    async with deploy_rest(engine=FakeOptions(step_time_s=0.05), step_row_limit=1, waiting_request_limit=1) as rest:
        waiting = [
            asyncio.ensure_future(rest.post("/v1/completions", prompt=f"{n}", max_tokens=30, stream=n % 2 == 0))
            for n in range(6)
        ]
        try:
            done: set[Any] = set()
            while not done:
                done = {task for task in waiting if task.done() and task.result().status_code == 429}
                await asyncio.sleep(0.01)
            refused = done.pop().result()
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["type"] == "rate_limit_error"
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        await rest.idle()


@pytest.mark.parametrize("is_stream", [True, False])
async def test_hanging_up_frees_the_blocks(deploy_rest: Callable[..., Any], is_stream: bool) -> None:
    async with deploy_rest(engine=FakeOptions(step_time_s=0.05)) as rest:
        body = {"prompt": "Once upon a time", "max_tokens": 2000, "ignore_eos": True, "stream": is_stream}
        async with httpx2.AsyncClient(base_url=rest.base_url) as http:
            asking = asyncio.ensure_future(read_all(http, body))
            await rest.router.until(lambda: rest.router.stats().running_count == 1)
            step_count = rest.router.stats().step_count
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await rest.router.until(lambda: rest.router.stats().running_count == 0)
        assert rest.router.stats().leased_block_count == 0
        assert rest.router.stats().step_count - step_count <= 2
        rest.router.check_integrity()


async def read_all(http: httpx2.AsyncClient, body: dict[str, Any]) -> None:
    async with http.stream("POST", "/v1/completions", json=body, timeout=30) as response:
        async for _ in response.aiter_bytes():
            pass


async def test_the_events_are_those_of_the_protocol(rest: Any) -> None:
    response = await rest.post("/v1/chat/completions", messages=QUESTION, max_tokens=3, temperature=0, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


async def test_a_passed_deadline_is_a_504(deploy_rest: Callable[..., Any]) -> None:
    async with deploy_rest(engine=FakeOptions(step_time_s=0.05)) as rest:
        headers = {"x-request-timeout-s": "0.2"}
        body = {"prompt": "Once", "max_tokens": 500, "ignore_eos": True}
        response = await rest.http.post("/v1/completions", json=body, headers=headers)
        assert response.status_code == 504
        streamed = await rest.http.post("/v1/completions", json=body | {"stream": True}, headers=headers)
        assert streamed.status_code == 200
        assert '"type":"timeout_error"' in streamed.text
        assert "[DONE]" not in streamed.text
        wrong = await rest.http.post("/v1/completions", json=body, headers={"x-request-timeout-s": "-1"})
        assert wrong.status_code == 400


async def test_ids_come_back_and_may_be_used_twice_at_once(rest: Any) -> None:
    headers = {"x-request-id": "mine"}
    responses = await asyncio.gather(
        *(rest.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 5}, headers=headers) for _ in range(3))
    )
    assert [response.status_code for response in responses] == [200] * 3
    assert {response.headers["x-request-id"] for response in responses} == {"mine"}
