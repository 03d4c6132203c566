"""A conversation put to the router on behalf of an HTTP request, in whatever protocol it came."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.requests import Request

from headrace.client import calls
from headrace.client.chat import MessageLike
from headrace.client.options import ChatOptions
from headrace.client.results import Generation
from headrace.contract.errors import FeatureUnsupported, FieldViolation, InvalidRequest
from headrace.services.rest.event_stream import OpenStream, open_all
from headrace.services.rest.http_request import while_connected
from headrace.services.rest.sidecar import Exchange

_TURN = "chat.messages["


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCall:
    """A conversation and how to answer it."""

    messages: Sequence[MessageLike]
    options: ChatOptions
    paths: Sequence[str] = ()
    """Where the caller wrote each message, in protocols that have other messages than `headrace.v1`."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """What the caller called fields of `headrace.v1` that have several names in its protocol."""

    async def whole(self, request: Request, exchange: Exchange) -> Generation:
        """Returns the answer.

        Raises:
            HeadraceError: the request failed.
            ClientGone: the caller hung up.
        """
        with named_after(self.paths, self.aliases):
            call = calls.chat(self.messages, self.options)
            return await while_connected(request, exchange.link.unary(call, exchange.context))

    async def stream(self, request: Request, exchange: Exchange) -> OpenStream:
        """Returns the stream, once the router has begun with it.

        Raises:
            HeadraceError: the request was refused.
            ClientGone: the caller hung up.
        """
        with named_after(self.paths, self.aliases):
            call = exchange.link.stream(calls.chat_stream(self.messages, self.options), exchange.context)
            [stream] = await while_connected(request, open_all([call], exchange.link.target))
        return stream


@contextmanager
def named_after(paths: Sequence[str], aliases: Mapping[str, str] | None = None) -> Iterator[None]:
    """Puts `paths` in the place of the messages that errors name, and `aliases` in that of other fields.

    Raises:
        InvalidRequest, FeatureUnsupported: what was raised within, about the caller's field.
    """
    names = aliases or {}
    try:
        yield
    except InvalidRequest as error:
        violations = [FieldViolation(_renamed(v.field, paths, names), v.description) for v in error.violations]
        raise InvalidRequest(violations) from error
    except FeatureUnsupported as error:
        description = error.message.removeprefix(f"{error.field}: ")
        raise FeatureUnsupported(_renamed(error.field, paths, names), description) from error


def _renamed(path: str, paths: Sequence[str], aliases: Mapping[str, str]) -> str:
    number, _, rest = path.removeprefix(_TURN).partition("]")
    if path.startswith(_TURN) and number.isdecimal() and int(number) < len(paths):
        return paths[int(number)] + rest
    # A group of fields that has one name there, such as a constraint, has it for all of them.
    return next((name for field, name in aliases.items() if path == field or path.startswith(f"{field}.")), path)
