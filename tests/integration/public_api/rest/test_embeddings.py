"""Vectors, as OpenAI's own client asks for them, over a real router."""

from typing import Any

import numpy as np
import openai
import pytest

from headrace.contract.pooling import Pooling, PoolingOptions
from headrace.shard.engines.fake_oracle import expected_vector

PROMPTS = [[7, 8, 9], list(range(100, 150))]


def wanted(prompt: list[int], pooling: Pooling, **options: Any) -> list[float]:
    data = expected_vector(tuple(prompt), PoolingOptions(pooling=pooling, **options), hidden_size=16)
    return np.frombuffer(data, dtype="<f4").tolist()


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
async def test_vectors_are_those_of_the_engine(rest: Any, encoding_format: Any) -> None:
    async with openai.AsyncOpenAI(base_url=f"{rest.base_url}/v1", api_key="none", max_retries=0) as client:
        # The client decodes base64 only if it was not asked for by name, and asks for it by itself.
        chosen = {} if encoding_format == "base64" else {"encoding_format": encoding_format}
        extra = {"pooling": "mean"}
        answer = await client.embeddings.create(model="test-model", input=PROMPTS, extra_body=extra, **chosen)
        assert [entry.embedding for entry in answer.data] == [wanted(prompt, Pooling.MEAN) for prompt in PROMPTS]
        assert [entry.index for entry in answer.data] == [0, 1]
        assert (answer.model, answer.usage.prompt_tokens) == ("test-model", 53)
        short = await client.embeddings.create(model="", input=PROMPTS[0], dimensions=4, extra_body=extra, **chosen)
        assert short.data[0].embedding == wanted(PROMPTS[0], Pooling.MEAN, dimension_count=4)


async def test_texts_and_their_forms(rest: Any) -> None:
    one = await rest.post("/v1/embeddings", input="The sky", pooling="last", user="me")
    assert one.headers["x-headrace-ignored"] == "user"
    many = await rest.post("/v1/embeddings", input=["The sky", "The sea"], pooling="last")
    assert many.json()["data"][0]["embedding"] == one.json()["data"][0]["embedding"]
    assert len(many.json()["data"]) == 2


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "x"}, "pooling"),
        ({"input": "x", "pooling": "first"}, "pooling"),
        ({"input": [], "pooling": "mean"}, "input"),
        ({"input": ["x", ""], "pooling": "mean"}, "input[1]"),
        ({"input": "x", "pooling": "mean", "dimensions": 0}, "dimensions"),
        ({"input": [[-1]], "pooling": "mean"}, "input[0].token_ids.ids"),
        ({"input": 5, "pooling": "mean"}, "input"),
        ({"pooling": "mean"}, "input"),
        ({"input": "x", "pooling": "mean", "colour": "red"}, "colour"),
    ],
)
async def test_a_wrong_field_is_named(rest: Any, body: dict[str, Any], param: str) -> None:
    response = await rest.post("/v1/embeddings", **body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
