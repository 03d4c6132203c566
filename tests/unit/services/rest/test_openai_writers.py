"""Chunks that are put together of prepared parts have the bytes that encoding each as a whole would give."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.services.rest import openai_answer
from headrace.services.rest.openai_chat import ChatWriter
from headrace.services.rest.openai_completions import TextWriter
from headrace.v1 import generate_service_pb2 as pb

Piece = tuple[int, str]

PIECES = st.lists(st.tuples(st.integers(0, 3), st.text(max_size=12)), max_size=12)
"""Texts of several completions, mixed: with quotes, control characters and what is beyond the basic plane."""

ANY_NAME = st.text(min_size=1, max_size=20)


def encoded(chunk: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


@given(PIECES, ANY_NAME, st.booleans())
def test_chunks_of_a_chat(pieces: list[Piece], model: str, with_usage: bool) -> None:
    writer = ChatWriter(with_logprobs=False, with_usage=with_usage)
    opening = writer.started(pb.GenerationStarted(request_id="r", model=model))
    first = json.loads(opening.removeprefix(b"data: "))
    usage = {"usage": None} if with_usage else {}

    def chunk(index: int, change: dict[str, str]) -> bytes:
        choice = {"index": index, "delta": change, "logprobs": None, "finish_reason": None}
        return encoded(
            {
                "id": "chatcmpl-r",
                "object": "chat.completion.chunk",
                "created": first["created"],
                "model": model,
                "system_fingerprint": openai_answer.SYSTEM_FINGERPRINT,
                "choices": [choice],
                **usage,
            }
        )

    assert opening == chunk(0, {"role": "assistant", "content": ""})
    begun = {0}
    for index, text in pieces:
        expected = b"" if index in begun else chunk(index, {"role": "assistant", "content": ""})
        begun.add(index)
        if text:
            expected += chunk(index, {"content": text})
        assert writer.delta(pb.GenerationDelta(index=index, text=text)) == expected


@given(PIECES, ANY_NAME, st.integers(0, 40), st.text(max_size=5))
def test_chunks_of_a_completion(pieces: list[Piece], model: str, first_index: int, echo: str) -> None:
    identity = {"id": "cmpl-r", "object": "text_completion", "created": 1}
    writer = TextWriter(identity, first_index=first_index, echo=echo, top_count=None)
    assert writer.started(pb.GenerationStarted(request_id="r", model=model)) == b""
    begun: set[int] = set()
    for index, text in pieces:
        whole = text if index in begun else echo + text
        begun.add(index)
        choice = {"index": first_index + index, "text": whole, "logprobs": None, "finish_reason": None}
        fingerprint = openai_answer.SYSTEM_FINGERPRINT
        chunk = identity | {"model": model, "system_fingerprint": fingerprint, "choices": [choice]}
        assert writer.delta(pb.GenerationDelta(index=index, text=text)) == (encoded(chunk) if whole else b"")


@pytest.mark.parametrize("with_usage", [False, True])
def test_a_text_between_other_changes(with_usage: bool) -> None:
    """The short way and the long one can follow each other in any order."""
    writer = ChatWriter(with_logprobs=False, with_usage=with_usage)
    writer.started(pb.GenerationStarted(request_id="r", model="m"))
    long_way = [{"reasoning": "why"}, {"tool_calls": [pb.ToolCallDelta(id="c", name="f", arguments_json="{}")]}]
    changes: list[dict[str, Any]] = [{"text": "a"}, long_way[0], {"text": "b"}, long_way[1], {"text": "c"}]
    texts = [writer.delta(pb.GenerationDelta(**change)) for change in changes]
    chunks = [json.loads(text.removeprefix(b"data: ")) for text in texts]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert [delta.get("content") for delta in deltas] == ["a", None, "b", None, "c"]
    assert deltas[1] == {"reasoning_content": "why"}
    assert deltas[3]["tool_calls"][0]["function"]["name"] == "f"
