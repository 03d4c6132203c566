"""The protocol of Text Generation Inference, as Hugging Face's client speaks it, over a real router."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from huggingface_hub import AsyncInferenceClient

PROMPT = "Once upon a time"


@pytest.fixture
async def client(rest: Any) -> AsyncIterator[AsyncInferenceClient]:
    async with AsyncInferenceClient(model=rest.base_url) as client:
        yield client


async def test_a_text_is_continued(rest: Any, client: AsyncInferenceClient) -> None:
    text = await client.text_generation(PROMPT, max_new_tokens=8)
    assert text
    assert text == await client.text_generation(PROMPT, max_new_tokens=8)
    full = await client.text_generation(PROMPT, max_new_tokens=8, return_full_text=True)
    assert full == PROMPT + text


async def test_details(rest: Any, client: AsyncInferenceClient) -> None:
    output = await client.text_generation(
        PROMPT, max_new_tokens=5, details=True, top_n_tokens=2, seed=3, do_sample=True
    )
    assert (output.details.finish_reason, output.details.generated_tokens, output.details.seed) == ("length", 5, 3)
    assert len(output.details.tokens) == len(output.details.top_tokens) == 5
    assert all(len(tokens) == 2 for tokens in output.details.top_tokens)


async def test_a_stream_has_a_token_for_each_event_and_ends_with_the_text(
    rest: Any, client: AsyncInferenceClient
) -> None:
    text = await client.text_generation(PROMPT, max_new_tokens=8)
    events = [
        event async for event in await client.text_generation(PROMPT, max_new_tokens=8, stream=True, details=True)
    ]
    assert [event.index for event in events] == list(range(1, 9))
    assert "".join(event.token.text for event in events) == text
    assert [event.generated_text for event in events] == [None] * 7 + [text]
    assert (events[-1].details.finish_reason, events[-1].details.generated_tokens) == ("length", 8)
    assert (
        "".join([piece async for piece in await client.text_generation(PROMPT, max_new_tokens=8, stream=True)]) == text
    )


async def test_a_stop_sequence_stays_in_the_text_and_its_token_is_the_last(
    rest: Any, client: AsyncInferenceClient
) -> None:
    text = await client.text_generation(PROMPT, max_new_tokens=20)
    stop = text[len(text) // 2 :][:3]
    expected = text[: text.index(stop) + len(stop)]
    assert await client.text_generation(PROMPT, max_new_tokens=20, stop=[stop]) == expected
    options = {"max_new_tokens": 20, "stop": [stop], "stream": True, "details": True}
    events = [event async for event in await client.text_generation(PROMPT, **options)]
    assert (events[-1].generated_text, events[-1].details.finish_reason) == (expected, "stop_sequence")
    assert events[-1].details.generated_tokens == len(events)


async def test_a_conversation_through_hugging_faces_client(rest: Any, client: AsyncInferenceClient) -> None:
    messages = [{"role": "user", "content": "Why is the sky blue?"}]
    answer = await client.chat_completion(messages, max_tokens=6, temperature=0.0)
    assert answer.usage.completion_tokens == 6
    chunks = [
        chunk async for chunk in await client.chat_completion(messages, max_tokens=6, temperature=0.0, stream=True)
    ]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == answer.choices[0].message.content


async def test_what_is_served(rest: Any) -> None:
    info = (await rest.http.get("/info")).json()
    assert (info["model_id"], info["router"]) == ("test-model", "headrace")
    assert info["max_input_tokens"] < info["max_total_tokens"]
    assert (await rest.http.get("/")).status_code == 200


async def test_tokens_and_where_they_are(rest: Any) -> None:
    text = "Grüße, 世界"
    tokens = (await rest.post("/tokenize", inputs=text)).json()
    assert (tokens[0]["start"], tokens[-1]["stop"]) == (0, len(text))
    assert all(token["start"] <= token["stop"] for token in tokens)
    chat = (await rest.post("/chat_tokenize", messages=[{"role": "user", "content": text}])).json()
    assert text in chat["templated_text"]
    assert len(chat["tokenize_response"]) > len(tokens)


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/", "/invocations"])
@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"temperature": 0}, "temperature"),
        ({"top_p": 2.0}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"truncate": 0}, "truncate"),
        ({"colour": "red"}, "colour"),
        ({"typical_p": 0.5}, "typical_p"),
    ],
)
async def test_a_wrong_parameter_is_422_before_anything_is_sent(
    rest: Any, path: str, parameters: dict[str, Any], field: str
) -> None:
    response = await rest.post(path, inputs=PROMPT, parameters=parameters)
    assert response.status_code == 422, response.text
    assert response.json()["error_type"] == "validation"
    assert field in response.json()["error"]


async def test_both_forms_of_the_answer(rest: Any) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 4}}
    whole = await rest.post("/generate", **body)
    assert whole.headers["x-generated-tokens"] == "4"
    assert float(whole.headers["x-compute-time"]) > 0
    assert (await rest.post("/", **body)).json() == [whole.json()]
    assert (await rest.post("/invocations", **body)).json() == [whole.json()]
    streamed = await rest.post("/generate_stream", **body)
    last = json.loads(streamed.text.strip().split("\n\n")[-1].removeprefix("data:"))
    assert last["generated_text"] == whole.json()["generated_text"]


async def test_what_sagemaker_passes_on(rest: Any) -> None:
    chat = await rest.post("/invocations", messages=[{"role": "user", "content": "x"}], max_tokens=2)
    assert chat.json()["object"] == "chat.completion"
    text = await rest.post("/invocations", prompt="x", max_tokens=2)
    assert text.json()["object"] == "text_completion"


async def test_best_of_returns_the_others_as_well(rest: Any) -> None:
    parameters = {"max_new_tokens": 4, "best_of": 2, "do_sample": True, "details": True}
    answer = (await rest.post("/generate", inputs=PROMPT, parameters=parameters)).json()
    assert len(answer["details"]["best_of_sequences"]) == 1
    assert (await rest.post("/generate_stream", inputs=PROMPT, parameters=parameters)).status_code == 422
