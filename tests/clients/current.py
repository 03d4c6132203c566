"""Asks a sidecar through LangChain's models and the current clients of OpenAI, Anthropic and Hugging Face.

Usage: current.py URL. Runs in an environment of its own; `make test-clients` makes it.
"""

import sys
from collections.abc import Callable

from anthropic import Anthropic
from huggingface_hub import InferenceClient
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from openai import OpenAI as OpenAIClient
from pydantic import BaseModel

MODEL = "smollm2-135m-instruct"
QUESTION = "Why is the sky blue?"


class Person(BaseModel):
    name: str
    is_tall: bool


def check_langchain_openai(url: str) -> None:
    for uses_responses in (False, True):
        model = ChatOpenAI(
            model=MODEL,
            base_url=f"{url}/v1",
            api_key="none",
            temperature=0,
            max_tokens=12,
            use_responses_api=uses_responses,
        )
        turns = [SystemMessage("Be brief."), HumanMessage(QUESTION)]
        answer = model.invoke(turns)
        assert isinstance(answer, AIMessage)
        assert answer.text
        assert answer.usage_metadata is not None
        assert answer.usage_metadata["output_tokens"] == 12
        pieces = list(model.stream(turns))
        assert all(isinstance(piece, AIMessageChunk) for piece in pieces)
        assert "".join(piece.text for piece in pieces) == answer.text
        again = model.invoke([*turns, answer, HumanMessage("Again.")])
        assert again.text


def check_langchain_structure(url: str) -> None:
    model = ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key="none", temperature=0, max_tokens=80)
    found = model.with_structured_output(Person, method="json_schema").invoke("Ada is tall.")
    assert isinstance(found, Person)


def check_langchain_completion_and_embeddings(url: str) -> None:
    model = OpenAI(model=MODEL, base_url=f"{url}/v1", api_key="none", temperature=0, max_tokens=8)
    assert model.invoke("Once upon a time")
    embeddings = OpenAIEmbeddings(
        model=MODEL,
        base_url=f"{url}/v1",
        api_key="none",
        check_embedding_ctx_length=False,
        model_kwargs={"extra_body": {"pooling": "mean"}},
    )
    sky, sea = embeddings.embed_documents(["The sky", "The sea"])
    assert len(sky) == len(sea) > 100
    assert sky != sea


def check_langchain_anthropic(url: str) -> None:
    model = ChatAnthropic(model=MODEL, base_url=url, api_key="none", temperature=0, max_tokens=12)
    turns = [SystemMessage("Be brief."), HumanMessage(QUESTION)]
    answer = model.invoke(turns)
    assert answer.text
    assert "".join(piece.text for piece in model.stream(turns)) == answer.text


def check_openai(url: str) -> None:
    client = OpenAIClient(base_url=f"{url}/v1", api_key="none", max_retries=0)
    turns = [{"role": "user", "content": QUESTION}]
    parsed = client.chat.completions.parse(
        model=MODEL, messages=turns, response_format=Person, max_tokens=80, temperature=0
    )
    assert isinstance(parsed.choices[0].message.parsed, Person)
    with client.chat.completions.stream(model=MODEL, messages=turns, max_tokens=8, temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
    whole = client.chat.completions.create(model=MODEL, messages=turns, max_tokens=8, temperature=0)
    assert text == whole.choices[0].message.content
    response = client.responses.parse(
        model=MODEL, input=QUESTION, text_format=Person, max_output_tokens=80, temperature=0
    )
    assert isinstance(response.output_parsed, Person)


def check_anthropic(url: str) -> None:
    client = Anthropic(base_url=url, api_key="none", max_retries=0)
    turns = [{"role": "user", "content": QUESTION}]
    count = client.messages.count_tokens(model=MODEL, messages=turns)
    answer = client.messages.create(model=MODEL, messages=turns, max_tokens=8)
    assert answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0) == count.input_tokens
    with client.messages.stream(model=MODEL, messages=turns, max_tokens=8) as stream:
        assert "".join(stream.text_stream) == stream.get_final_message().content[0].text


def check_hugging_face(url: str) -> None:
    client = InferenceClient(model=url)
    text = client.text_generation("Once upon a time", max_new_tokens=8)
    pieces = client.text_generation("Once upon a time", max_new_tokens=8, stream=True)
    assert "".join(pieces) == text
    answer = client.chat_completion([{"role": "user", "content": QUESTION}], max_tokens=8)
    assert answer.choices[0].message.content


CHECKS: tuple[Callable[[str], None], ...] = (
    check_openai,
    check_anthropic,
    check_hugging_face,
    check_langchain_openai,
    check_langchain_structure,
    check_langchain_completion_and_embeddings,
    check_langchain_anthropic,
)

if __name__ == "__main__":
    for check in CHECKS:
        check(sys.argv[1])
        print(f"  {check.__name__.removeprefix('check_')}")
