"""`/v1/responses`: OpenAI's conversations of items, in the stateless form."""

from starlette.requests import Request
from starlette.responses import Response

from headrace.services.rest.chat_call import ChatCall
from headrace.services.rest.event_stream import EventStreamResponse
from headrace.services.rest.openai_answer import json_response
from headrace.services.rest.responses_answer import response_of
from headrace.services.rest.responses_fields import ResponsesBody
from headrace.services.rest.responses_stream import ResponseWriter
from headrace.services.rest.sidecar import Exchange


async def create_response(request: Request, exchange: Exchange) -> Response:
    """Answers a conversation, whole or as a stream."""
    body = await exchange.read(request, ResponsesBody)
    messages, paths = body.conversation_of()
    call = ChatCall(
        messages=messages, options=body.options(exchange.router_request_id()), paths=paths, aliases=body.aliases()
    )
    headers = exchange.headers(body)
    if not body.stream:
        return json_response(response_of(body, await call.whole(request, exchange)), headers)
    stream = await call.stream(request, exchange)
    return EventStreamResponse([(stream, ResponseWriter(body))], closing=lambda: b"", headers=headers)
