"""`/ui`: the files of the page that talks to a model in a browser, as they are in the package."""

import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_MEDIA_TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}

_HEADERS = {
    # Kept by the browser, and asked about each time: a new version shows at once.
    "cache-control": "no-cache",
    # The page loads its own files and calls its own server, nothing else; no other page may frame it.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

_FILES = ("index.html", "style.css", "app.js", "answer_stream.js", "figures.js", "icon.svg")


def ui_routes() -> list[Route]:
    """Reads the files and returns their routes; the page itself is at `/ui`."""
    folder = files("headrace.services.rest") / "ui"
    return [_route(name, (folder / name).read_bytes()) for name in _FILES]


def _route(name: str, content: bytes) -> Route:
    path = "/ui" if name == "index.html" else f"/ui/{name}"
    return Route(path, _answering(path, content, _MEDIA_TYPES[name.rpartition(".")[2]]))


def _answering(path: str, content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    headers = {**_HEADERS, "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}

    async def answer(request: Request) -> Response:
        request.scope["endpoint_path"] = path
        if _is_known(request.headers.get("if-none-match", ""), headers["etag"]):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)

    return answer


def _is_known(if_none_match: str, etag: str) -> bool:
    """Whether the caller has this content; a weak tag compares like a strong one here (RFC 9110, 13.1.2)."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags or tags == ["*"]
