"""Tells those who watch requests when one begins and how it ended, and lets bodies past everything in between."""

from collections.abc import Callable, Sequence
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Ending = Callable[[int], None]
"""Called when a request is over, with the status of its answer, or 0 if there was none."""

Watcher = Callable[[Scope], Ending]
"""Called when a request begins."""

_SERVER_SEND: Final = "headrace.server_send"


class RequestWatch:
    """Goes around the whole application. What watchers put into the scope is there for all that is inside."""

    def __init__(self, app: ASGIApp, watchers: Sequence[Watcher]) -> None:
        self._app = app
        self._watchers = watchers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, as ASGI asks."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[_SERVER_SEND] = send
        endings = [watcher(scope) for watcher in self._watchers]
        status = 0

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            for end in endings:
                end(status)


def short_way(scope: Scope, send: Send) -> Send:
    """Returns how to send pieces of a body, once the status is sent: straight to the server.

    Every layer of the application wraps `send` to see the status, and would pass each token on to the next one.
    """
    server_send: Send = scope.get(_SERVER_SEND, send)
    return server_send
