"""Which tokens of a completion its text came from, whatever came before and after it."""

from collections.abc import Sequence

import pytest

from headrace.client.results import TokenLogprob
from headrace.services.rest.responses_logprobs import tokens_of_text, write_logprobs


def tokens_of(texts: Sequence[str], sizes_bytes: Sequence[int] | None = None) -> list[TokenLogprob]:
    offset = 0
    tokens: list[TokenLogprob] = []
    for index, text in enumerate(texts):
        tokens.append(TokenLogprob(token_id=index, text=text, logprob=-0.5, rank=1, top=(), byte_offset=offset))
        offset += len(text.encode()) if sizes_bytes is None else sizes_bytes[index]
    return tokens


BROKEN = ["<think>", "Hm", "</think>", "\ufffd", "\ufffd"]


@pytest.mark.parametrize(
    ("texts", "text", "reasoning", "expected"),
    [
        (["Hel", "lo", " you"], "Hello you", "", ["Hel", "lo", " you"]),
        (["Hel", "lo", " STOP"], "Hello", "", ["Hel", "lo"]),
        (["Hel", "lo<", "tool_call>", "{}"], "Hello", "", ["Hel", "lo<"]),
        (["<think>", "Hm", "</think>", "\n\n", "Hi", "!"], "Hi!", "Hm", ["Hi", "!"]),
        (["Hi", "</think>", "\n\nH", "i", "<tool_call>"], "Hi", "Hi", ["\n\nH", "i"]),
        (BROKEN, "\u00fc", "Hm", BROKEN),
        ([], "", "", []),
    ],
)
def test_the_tokens_of_the_text(texts: list[str], text: str, reasoning: str, expected: list[str]) -> None:
    assert [token.text for token in tokens_of_text(tokens_of(texts), text, reasoning)] == expected


def test_a_character_of_several_tokens_is_told_by_its_bytes() -> None:
    tokens = tokens_of(["a", "\ufffd", "\ufffd", "<end>"], [1, 2, 2, 0])
    found = tokens_of_text(tokens, "a\U0001f600", "")
    assert len(found) == 3
    assert [entry["bytes"] for entry in write_logprobs(found)] == [[97], [], []]
