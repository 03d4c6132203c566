"""`/openapi.json` and `/docs`: what the sidecar says of itself."""

from functools import cache
from importlib.metadata import version

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headrace.services.rest.docs_page import docs_page
from headrace.services.rest.openapi import openapi_document

_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""The page needs nothing but its own style."""


@cache
def _document() -> bytes:
    return orjson.dumps(openapi_document(version("headrace")))


@cache
def _page() -> bytes:
    return docs_page(orjson.loads(_document()))


async def get_openapi(request: Request) -> Response:
    """Returns the OpenAPI document."""
    del request
    return Response(_document(), media_type="application/json")


async def get_docs(request: Request) -> Response:
    """Returns the page for people."""
    del request
    return Response(_page(), media_type="text/html", headers={"content-security-policy": _PAGE_POLICY})


DESCRIPTION_ROUTES = (Route("/openapi.json", get_openapi), Route("/docs", get_docs))
