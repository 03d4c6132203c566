"""What is refused of the head of a request before anybody looks at what it asks for."""

import re
from collections.abc import Sequence
from typing import Final

from headrace.services.rest import refusals
from headrace.services.rest.wire_count import HEAD_LIMIT_BYTES

_LINE_EXTRA_BYTES: Final = 4
"""What a header takes beside its name and its value."""

_HOST: Final = re.compile(rb"(?:\[[0-9A-Za-z:.%_~-]+\]|[\w.~!$&'()*+,;=%-]*)(?::[0-9]*)?")
"""The name or the address of a host, and its port (RFC 3986, 3.2). It may be empty."""


class HeadRefused(ValueError):
    """A request is refused for its head."""

    def __init__(self, answer: bytes) -> None:
        super().__init__("the head of the request was refused")
        self.answer = answer


def check_head(url: bytes, headers: Sequence[tuple[bytes, bytes]], version: str) -> None:
    """Checks a head that is complete; `version` is that of HTTP, such as 1.1.

    Raises:
        HeadRefused: it is too large, or does not name one host.
    """
    if len(url) + sum(len(name) + len(value) + _LINE_EXTRA_BYTES for name, value in headers) > HEAD_LIMIT_BYTES:
        raise HeadRefused(refusals.TOO_LARGE)
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (not hosts and version != "1.0") or not all(map(_HOST.fullmatch, hosts)):
        raise HeadRefused(refusals.ONE_HOST)
