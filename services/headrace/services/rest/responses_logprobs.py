"""Log-probabilities as `/v1/responses` has them: those of the tokens that make up the text of a message."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, TypeVar

from headrace.client.results import TokenLogprob
from headrace.v1 import generate_service_pb2 as pb

TokenT = TypeVar("TokenT", TokenLogprob, pb.TokenLogprob)


def tokens_of_text(tokens: Sequence[TokenT], text: str, reasoning: str) -> Sequence[TokenT]:
    """Returns those of a completion's tokens that its text came from.

    Beside them a completion has tokens of tool calls, of a stop sequence and of its end, which follow the text, and
    of reasoning and its marks, which go before. The text is looked for behind the reasoning. Where characters of it are
    spread over several tokens it is not found that way, and then all tokens are returned.
    """
    if not reasoning:
        size_bytes = len(text.encode())
        return [token for token in tokens if token.byte_offset < size_bytes]
    written = "".join(token.text for token in tokens)
    begin = written.find(text, max(0, written.find(reasoning)) + len(reasoning))
    if begin < 0:
        return tokens
    ends = accumulate(len(token.text) for token in tokens)
    return [
        token
        for token, end in zip(tokens, ends, strict=True)
        if end > begin and end - len(token.text) < begin + len(text)
    ]


def write_logprobs(tokens: Sequence[TokenT]) -> list[dict[str, Any]]:
    """Returns tokens as the text of a message has them."""
    return [_entry(token) | {"top_logprobs": [_entry(rival) for rival in token.top]} for token in tokens]


def _entry(token: TokenLogprob | pb.TokenLogprob) -> dict[str, Any]:
    # The bytes of a piece of a character are not known here.
    known = [] if "\ufffd" in token.text else list(token.text.encode())
    return {"token": token.text, "logprob": token.logprob, "bytes": known}
