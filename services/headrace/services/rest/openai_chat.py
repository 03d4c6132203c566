"""`/v1/chat/completions`: OpenAI's chat, with tools, formats and log-probabilities."""

import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import orjson
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from headrace.client.options import ChatOptions
from headrace.client.results import Completion, Generation
from headrace.contract.errors import HeadraceError, InvalidRequest
from headrace.services.rest import openai_answer as answer
from headrace.services.rest.chat_call import ChatCall
from headrace.services.rest.event_stream import EventStreamResponse
from headrace.services.rest.openai_fields import JsonMapping, SamplingBody
from headrace.services.rest.openai_prompts import Entries
from headrace.services.rest.sidecar import Exchange
from headrace.v1 import generate_service_pb2 as pb


class ChatBody(SamplingBody):
    """A request for the next message of a conversation."""

    messages: Entries[JsonMapping] = Field(min_length=1)
    """Turns with `role`, `content` (a text, or parts of type `text` and `image_url`), `tool_calls`, `tool_call_id`."""
    max_completion_tokens: int | None = None
    """The same as `max_tokens`."""
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: Entries[JsonMapping] | None = None
    tool_choice: Literal["none", "auto", "required"] | JsonMapping | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    """Given to the chat template."""
    chat_template: str | None = None
    chat_template_kwargs: JsonMapping | None = None
    add_generation_prompt: Literal[True] = True
    continue_final_message: bool | None = None
    echo: Literal[False] = False
    modalities: Entries[Literal["text"]] | None = None
    prediction: JsonMapping | None = None
    verbosity: str | None = None

    IGNORED = SamplingBody.IGNORED | {"prediction", "verbosity"}

    def ignored_within(self) -> Iterator[str]:
        """Yields what has no effect; a call that nobody asked for is held to no schema."""
        yield from super().ignored_within()
        is_free = self.tool_choice in (None, "auto", "none")
        if is_free and any(_function(tool).get("strict") for tool in self.tools or ()):
            yield "tools.function.strict"
        if self.parallel_tool_calls is not None and not self.tools:
            yield "parallel_tool_calls"

    def aliases(self) -> dict[str, str]:
        """Returns the names of fields of `headrace.v1` where the body had a choice."""
        limit = {} if self.max_completion_tokens is None else {"stopping.max_new_token_count": "max_completion_tokens"}
        return super().aliases() | limit

    def options(self, request_id: str) -> ChatOptions:
        """Returns what the body asks for.

        Raises:
            InvalidRequest: two fields contradict each other.
        """
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise InvalidRequest.of("max_completion_tokens", "cannot be given beside max_tokens")
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest.of("top_logprobs", "needs logprobs to be true")
        arguments = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None:
            if "reasoning_effort" in arguments:
                raise InvalidRequest.of("reasoning_effort", "cannot be given beside chat_template_kwargs that have it")
            arguments["reasoning_effort"] = self.reasoning_effort
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        options: ChatOptions = {
            "max_new_token_count": limit,
            "token_logprobs": self.logprobs,
            "top_logprob_count": self.top_logprobs,
            "tools": None if self.tools is None else [_without_strict(tool) for tool in self.tools],
            "tool_choice": self.tool_choice,
            "parallel_tool_calls": self.parallel_tool_calls,
            "template": self.chat_template,
            "template_arguments": arguments or None,
            "continue_final_message": self.continue_final_message,
        }
        return {**self.sampling_options(request_id), **options}


def _function(tool: JsonMapping) -> JsonMapping:
    function = tool.get("function")
    return function if isinstance(function, dict) else {}


def _without_strict(tool: JsonMapping) -> JsonMapping:
    """Returns a tool without a word that the router has no use for: what is asked for always fits its schema."""
    function = _function(tool)
    # What is no such word is refused below with all else that a function does not have.
    if function.get("strict", "") not in (None, True, False):
        return tool
    return {**tool, "function": {key: value for key, value in function.items() if key != "strict"}}


class ChatChoice(TypedDict):
    """One answer."""

    index: int
    message: dict[str, Any]
    logprobs: dict[str, Any] | None
    finish_reason: str


class ChatCompletion(TypedDict):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: answer.OpenAiUsage
    system_fingerprint: str


async def create_chat_completion(request: Request, exchange: Exchange) -> Response:
    """Answers a conversation, whole or as a stream."""
    body = await exchange.read(request, ChatBody)
    options = body.options(exchange.router_request_id())
    headers = exchange.headers(body)
    call = ChatCall(messages=body.messages, options=options, aliases=body.aliases())
    if not body.stream:
        return answer.json_response(_completion(await call.whole(request, exchange)), headers)
    stream = await call.stream(request, exchange)
    writer = ChatWriter(with_logprobs=bool(body.logprobs), with_usage=body.wants_usage)
    return EventStreamResponse([(stream, writer)], closing=lambda: answer.DONE, headers=headers)


def _completion(generation: Generation) -> ChatCompletion:
    return {
        "id": f"chatcmpl-{generation.request_id}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": generation.model,
        "choices": [_choice(completion) for completion in generation.completions],
        "usage": answer.usage_of(generation.usage),
        "system_fingerprint": answer.SYSTEM_FINGERPRINT,
    }


def _choice(completion: Completion) -> ChatChoice:
    message: dict[str, Any] = {"role": "assistant", "content": completion.text, "refusal": None}
    if completion.reasoning:
        message["reasoning_content"] = completion.reasoning
    if completion.tool_calls:
        message["content"] = completion.text or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_json}}
            for call in completion.tool_calls
        ]
    return {
        "index": completion.index,
        "message": message,
        "logprobs": answer.chat_logprobs(completion.logprobs) if completion.logprobs else None,
        "finish_reason": answer.finish_reason(completion.end, has_tool_calls=bool(completion.tool_calls)),
    }


class ChatWriter:
    """Writes the chunks of a chat stream; what does not change from token to token is encoded once."""

    def __init__(self, *, with_logprobs: bool, with_usage: bool) -> None:
        self._with_logprobs = with_logprobs
        self._with_usage = with_usage
        self._head = b""
        self._tail = b',"usage":null}\n\n' if with_usage else b"}\n\n"
        self._text_tail = b'},"logprobs":null,"finish_reason":null}]' + self._tail
        self._text_heads: dict[int, bytes] = {}
        """What goes before the text of each completion that has begun."""
        self._with_tool_calls: set[int] = set()

    def started(self, started: pb.GenerationStarted) -> bytes:
        """Keeps what every chunk repeats."""
        chunk = {
            "id": f"chatcmpl-{started.request_id}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": started.model,
            "system_fingerprint": answer.SYSTEM_FINGERPRINT,
        }
        self._head = b"data: " + orjson.dumps(chunk)[:-1] + b',"choices":'
        return self._open(0)

    def delta(self, delta: pb.GenerationDelta) -> bytes:
        """Returns a chunk, or nothing while text is withheld."""
        index = delta.index
        text_head = self._text_heads.get(index)
        opening = b""
        if text_head is None:
            opening = self._open(index)
            text_head = self._text_heads[index]
        if not (self._with_logprobs or delta.reasoning or delta.tool_calls):
            text = delta.text
            return opening + text_head + orjson.dumps(text) + self._text_tail if text else opening
        change = self._change(delta)
        logprobs = answer.chat_logprobs(delta.logprobs) if self._with_logprobs and delta.logprobs else None
        if not change and logprobs is None:
            return opening
        return opening + self._chunk(index, change, None, logprobs)

    def finished(self, finished: pb.GenerationFinished) -> bytes:
        """Returns the reasons to end, and the usage if it was asked for."""
        chunks = [
            self._chunk(
                end.index, {}, answer.streamed_finish_reason(end, has_tool_calls=end.index in self._with_tool_calls)
            )
            for end in finished.ends
        ]
        if self._with_usage:
            chunks.append(b'%b[],"usage":%b}\n\n' % (self._head, orjson.dumps(answer.usage_of(finished.usage))))
        return b"".join(chunks)

    def failed(self, error: HeadraceError) -> bytes:
        """Returns the error as an event."""
        return answer.error_event(error)

    def _open(self, index: int) -> bytes:
        self._text_heads[index] = b'%b[{"index":%d,"delta":{"content":' % (self._head, index)
        return self._chunk(index, {"role": "assistant", "content": ""}, None)

    def _change(self, delta: pb.GenerationDelta) -> dict[str, Any]:
        change: dict[str, Any] = {}
        if delta.reasoning:
            change["reasoning_content"] = delta.reasoning
        if delta.text:
            change["content"] = delta.text
        if delta.tool_calls:
            self._with_tool_calls.add(delta.index)
            change["tool_calls"] = [_tool_call_piece(piece) for piece in delta.tool_calls]
        return change

    def _chunk(
        self, index: int, change: Mapping[str, Any], reason: str | None, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": index, "delta": change, "logprobs": logprobs, "finish_reason": reason}
        return self._head + orjson.dumps([choice]) + self._tail


def _tool_call_piece(piece: pb.ToolCallDelta) -> dict[str, Any]:
    function: dict[str, Any] = {"arguments": piece.arguments_json}
    entry: dict[str, Any] = {"index": piece.index, "function": function}
    if piece.id:
        entry |= {"id": piece.id, "type": "function"}
        function["name"] = piece.name
    return entry
