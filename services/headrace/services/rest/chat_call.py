"""A conversation put to the router on behalf of an HTTP request, in whatever protocol it came."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

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

    async def whole(self, request: Request, exchange: Exchange) -> Generation:
        """Returns the answer.

        Raises:
            HeadraceError: the request failed.
            ClientGone: the caller hung up.
        """
        with named_after(self.paths):
            call = calls.chat(self.messages, self.options)
            return await while_connected(request, exchange.link.unary(call, exchange.context))

    async def stream(self, request: Request, exchange: Exchange) -> OpenStream:
        """Returns the stream, once the router has begun with it.

        Raises:
            HeadraceError: the request was refused.
            ClientGone: the caller hung up.
        """
        with named_after(self.paths):
            call = exchange.link.stream(calls.chat_stream(self.messages, self.options), exchange.context)
            [stream] = await while_connected(request, open_all([call], exchange.link.target))
        return stream


@contextmanager
def named_after(paths: Sequence[str]) -> Iterator[None]:
    """Puts `paths` in the place of the messages that errors name.

    Raises:
        InvalidRequest, FeatureUnsupported: what was raised within, about the caller's field.
    """
    try:
        yield
    except InvalidRequest as error:
        violations = [FieldViolation(_renamed(v.field, paths), v.description) for v in error.violations]
        raise InvalidRequest(violations) from error
    except FeatureUnsupported as error:
        raise FeatureUnsupported(
            _renamed(error.field, paths), error.message.removeprefix(f"{error.field}: ")
        ) from error


def _renamed(field: str, paths: Sequence[str]) -> str:
    number, _, rest = field.removeprefix(_TURN).partition("]")
    if not (field.startswith(_TURN) and number.isdecimal() and int(number) < len(paths)):
        return field
    return paths[int(number)] + rest
