"""A conversation put to the router on behalf of an HTTP request, in whatever protocol it came."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from starlette.requests import Request

from headrace.client import calls
from headrace.client.chat import MessageLike
from headrace.client.options import ChatOptions
from headrace.client.results import Generation
from headrace.services.rest.event_stream import OpenStream, open_all
from headrace.services.rest.field_naming import named_after
from headrace.services.rest.http_request import while_connected
from headrace.services.rest.sidecar import Exchange


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
