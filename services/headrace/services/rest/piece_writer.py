"""Writes pieces of an answer's body straight to the connection, where the server would do nothing else with them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from starlette.types import Scope

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

PieceWriter = Callable[[bytes], bool]
"""Writes a piece that is not empty, or returns False without writing: then it is to be sent as ASGI has it."""

_SCOPE_KEY: Final = "headrace.piece_writer"


def offer_pieces(scope: Any, cycle: "RequestResponseCycle") -> None:  # noqa: ANN401  # uvicorn's type of a scope
    """Offers the application of a request a short way to its connection.

    A piece is a token, and ASGI costs it a message, a coroutine and a dozen looks
    at what such messages may be. What is left of them here are those whose answer
    may change while a body is being written. In every other case the server has
    its way: it waits for a reader who is behind, and knows of answers without chunks.
    """

    def write(piece: bytes) -> bool:
        if not cycle.chunked_encoding or cycle.response_complete or cycle.disconnected or cycle.flow.write_paused:
            return False
        cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        return True

    scope[_SCOPE_KEY] = write


def piece_writer(scope: Scope) -> PieceWriter:
    """Returns how to write pieces of the answer to a request once its status is sent."""
    found: PieceWriter = scope.get(_SCOPE_KEY, _never)
    return found


def _never(piece: bytes) -> bool:
    """Stands for servers that offer nothing, such as those of tests."""
    del piece
    return False
