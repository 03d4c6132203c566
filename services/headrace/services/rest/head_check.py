"""What is refused of the head of a request before anybody looks at what it asks for."""

from collections.abc import Sequence
from typing import Final

from headrace.services.rest import refusals
from headrace.services.rest.wire_count import HEAD_LIMIT_BYTES

_LINE_EXTRA_BYTES: Final = 4
"""What a header takes beside its name and its value."""


class HeadRefused(ValueError):
    """A request is refused for its head."""

    def __init__(self, answer: bytes) -> None:
        super().__init__("the head of the request was refused")
        self.answer = answer


def check_head(url: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Checks a head that is complete.

    Raises:
        HeadRefused: it is too large.
    """
    if len(url) + sum(len(name) + len(value) + _LINE_EXTRA_BYTES for name, value in headers) > HEAD_LIMIT_BYTES:
        raise HeadRefused(refusals.TOO_LARGE)
