"""A body of too many parts is refused before it is parsed, whatever texts it has; a long text is not."""

import json
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.services.rest import json_bounds
from headrace.services.rest.errors import HttpProblem
from headrace.services.rest.json_body import parse_body
from headrace.services.rest.json_bounds import ENTRY_LIMIT, NODE_LIMIT, check_parts
from headrace.services.rest.openai_chat import ChatBody

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers() | st.text(alphabet='ab"\\:,{[]}é \n', max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('a":,\\{[', max_size=4), inner, max_size=4),
    max_leaves=20,
)


def parts(value: Any) -> tuple[int, int]:
    """Returns the nodes and the commas of a value."""
    if isinstance(value, dict):
        counts = [parts(entry) for entry in value.values()]
        return 1 + len(value) + sum(n for n, _ in counts), max(0, len(value) - 1) + sum(c for _, c in counts)
    if isinstance(value, list):
        counts = [parts(entry) for entry in value]
        return 1 + sum(n for n, _ in counts), max(0, len(value) - 1) + sum(c for _, c in counts)
    return 0, 0


def is_refused(raw: bytes) -> bool:
    try:
        check_parts(raw)
    except HttpProblem:
        return True
    return False


@given(VALUES, st.booleans(), st.integers(0, 12), st.integers(0, 12), st.integers(1, 9))
def test_the_limits_are_exact(value: Any, is_ascii: bool, node_limit: int, entry_limit: int, window_bytes: int) -> None:
    """Neither a quote nor a backslash within a text shifts what is counted, nor does the end of a window."""
    raw = json.dumps(value, ensure_ascii=is_ascii).encode()
    node_count, comma_count = parts(value)
    with patch.multiple(json_bounds, NODE_LIMIT=node_limit, ENTRY_LIMIT=entry_limit, _WINDOW_BYTES=window_bytes):
        assert is_refused(raw) == (node_count > node_limit or comma_count > entry_limit)


LARGE: dict[str, tuple[bytes, bool]] = {
    "keys": (b"{" + b",".join(b'"k%d":0' % number for number in range(NODE_LIMIT)) + b"}", True),
    "keys with spaces": (b"{" + b",".join(b'"k%d" \n: 0' % number for number in range(NODE_LIMIT)) + b"}", True),
    "objects": (b"[" + b"{}," * NODE_LIMIT + b"0]", True),
    "lists": (b"[" + b"[]," * NODE_LIMIT + b"0]", True),
    "numbers": (b"[" + b"1," * (ENTRY_LIMIT + 1) + b"1]", True),
    "texts": (b"[" + b'"",' * (ENTRY_LIMIT + 1) + b"1]", True),
    "as many numbers as may be": (b"[" + b"1," * ENTRY_LIMIT + b"1]", False),
    "a text of code": (json.dumps({"prompt": '{"a": [1, "b\\"", \'c\']}\n' * 100_000}).encode(), False),
}


@pytest.mark.parametrize(("raw", "refused"), LARGE.values(), ids=LARGE)
def test_what_a_large_body_holds_decides(raw: bytes, refused: bool) -> None:
    assert is_refused(raw) == refused


def test_nothing_is_parsed_of_a_body_of_too_many_parts() -> None:
    raw, _ = LARGE["keys"]
    with patch.object(ChatBody, "model_validate_json", side_effect=AssertionError("was parsed")):
        with pytest.raises(HttpProblem, match="more than the limit of 20000 objects, lists and keys") as caught:
            parse_body(raw, ChatBody)
    assert caught.value.status == 413
