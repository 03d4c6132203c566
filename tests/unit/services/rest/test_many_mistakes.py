"""A body that is wrong in a million places is refused for the first ones, in no more time than it takes to read it."""

import json
from typing import Any

import pytest

from headrace.contract.errors import InvalidRequest
from headrace.services.rest.anthropic_fields import MessagesBody
from headrace.services.rest.json_body import parse_body
from headrace.services.rest.openai_chat import ChatBody
from headrace.services.rest.openai_completions import CompletionBody
from headrace.services.rest.openai_embeddings import EmbeddingsBody
from headrace.services.rest.responses_fields import ResponsesBody
from headrace.services.rest.tgi_fields import GenerateBody

COUNT = 15_000
"""About as many as a body may have. Compared with each other, they would take many seconds."""

TURN = {"role": "user", "content": "x"}
LISTS: list[tuple[Any, dict[str, Any], str]] = [
    (CompletionBody, {"prompt": [1.5] * COUNT}, "prompt[0]"),
    (CompletionBody, {"prompt": [[1.5] * COUNT]}, "prompt[0][0]"),
    (CompletionBody, {"prompt": "x", "stop": [1] * COUNT}, "stop[0]"),
    (CompletionBody, {"prompt": "x", "bad_words": [{}] * COUNT}, "bad_words[0]"),
    (EmbeddingsBody, {"input": [None] * COUNT}, "input[0]"),
    (ChatBody, {"messages": [1] * COUNT}, "messages[0]"),
    (ChatBody, {"messages": [TURN], "tools": [1] * COUNT}, "tools[0]"),
    (ResponsesBody, {"input": [1] * COUNT}, "input[0]"),
    (ResponsesBody, {"input": [{"role": "user", "content": [1] * COUNT}]}, "input[0].content[0]"),
    (MessagesBody, {"model": "", "max_tokens": 1, "messages": [1] * COUNT}, "messages[0]"),
    (
        MessagesBody,
        {"model": "", "max_tokens": 1, "messages": [{"role": "user", "content": [{}] * COUNT}]},
        "messages[0].content[0]",
    ),
    (GenerateBody, {"inputs": "x", "parameters": {"stop": [1] * COUNT}}, "parameters.stop[0]"),
]


@pytest.mark.parametrize(("kind", "body", "field"), LISTS, ids=lambda value: value if isinstance(value, str) else "")
def test_of_a_list_the_first_wrong_entry_is_told(kind: Any, body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_body(json.dumps(body).encode(), kind)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_of_keys_some_are_told() -> None:
    body = {"prompt": "x"} | {f"a{number}": 1 for number in range(COUNT)}
    with pytest.raises(InvalidRequest) as caught:
        parse_body(json.dumps(body).encode(), CompletionBody)
    assert len(caught.value.violations) == 20
