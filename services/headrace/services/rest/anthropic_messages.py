"""`/v1/messages` and `/v1/messages/count_tokens`: Anthropic's conversations."""

from starlette.requests import Request
from starlette.responses import Response

from headrace.client import calls
from headrace.client.options import TokenizeChatOptions
from headrace.services.rest import anthropic_answer as answer
from headrace.services.rest.anthropic_fields import MessagesBody, PromptBody
from headrace.services.rest.anthropic_stream import MessageWriter
from headrace.services.rest.chat_call import ChatCall
from headrace.services.rest.event_stream import EventStreamResponse
from headrace.services.rest.field_naming import named_after
from headrace.services.rest.http_request import while_connected
from headrace.services.rest.openai_answer import json_response
from headrace.services.rest.sidecar import Exchange


async def create_message(request: Request, exchange: Exchange) -> Response:
    """Answers a conversation, whole or as a stream."""
    body = await exchange.read(request, MessagesBody)
    messages, paths = body.conversation()
    call = ChatCall(messages=messages, options=body.options(exchange.router_request_id()), paths=paths)
    headers = answer.own_headers(exchange.headers(body))
    if not body.stream:
        generation = await call.whole(request, exchange)
        return json_response(answer.message_of_generation(generation), headers)
    stream = await call.stream(request, exchange)
    writer = MessageWriter(exchange.context.request_id)
    return EventStreamResponse([(stream, writer)], closing=lambda: b"", headers=headers)


async def count_tokens(request: Request, exchange: Exchange) -> Response:
    """Returns how many tokens a conversation has as a prompt."""
    body = await exchange.read(request, PromptBody)
    messages, paths = body.conversation()
    given = body.template_options()
    options: TokenizeChatOptions = {
        "model": given.get("model"),
        "tools": given.get("tools"),
        "tool_choice": given.get("tool_choice"),
        "template_arguments": given.get("template_arguments"),
        "continue_final_message": given.get("continue_final_message"),
    }
    with named_after(paths):
        tokenize = calls.tokenize_chat(messages, options)
        tokenization = await while_connected(request, exchange.link.unary(tokenize, exchange.context))
    count: answer.TokenCount = {"input_tokens": len(tokenization.token_ids)}
    return json_response(count, answer.own_headers(exchange.headers(body)))
