"""Bounds how many parts the JSON of a body may have, by a count that takes a fraction of the time of parsing it.

A body of 16 MB may be one text, which is read in milliseconds, or a million
keys, which take seconds: the event loop would be held up by them, and every
other caller with it. What takes time is the number of parts, not of bytes.
"""

from typing import Final

from headrace.services.rest.errors import HttpProblem

NODE_LIMIT: Final = 20_000
"""Objects, lists and the keys of objects: some thousand turns of a conversation, with tools."""
ENTRY_LIMIT: Final = 2**19
"""Commas between parts: more token ids than a prompt has."""
_WINDOW_BYTES: Final = 2**18
"""How much is counted before it is compared with the limits: what comes after too many parts costs nothing."""


def check_parts(raw: bytes) -> None:
    """Refuses a body of too many parts. Of what is no JSON it counts as far as a parser would come.

    Raises:
        HttpProblem: there are more nodes or entries than the limits.
    """
    node_count = comma_count = 0
    is_in_text = False
    rest = b""
    for start in range(0, len(raw), _WINDOW_BYTES):
        # Escaped backslashes first: one that is left then escapes what comes next, a quote or not.
        bare = (rest + raw[start : start + _WINDOW_BYTES]).replace(rb"\\", b"")
        rest = b"\\" if bare.endswith(b"\\") else b""
        pieces = bare.replace(rb"\"", b"").split(b'"')
        between = b"".join(pieces[is_in_text::2])
        is_in_text ^= len(pieces) % 2 == 0
        node_count += between.count(b":") + between.count(b"{") + between.count(b"[")
        comma_count += between.count(b",")
        if node_count > NODE_LIMIT:
            raise HttpProblem(413, f"the body has more than the limit of {NODE_LIMIT} objects, lists and keys")
        if comma_count > ENTRY_LIMIT:
            raise HttpProblem(413, f"the body has more than the limit of {ENTRY_LIMIT} entries")
