"""`/v1/completions`: OpenAI's completion of texts or token ids, several in one request."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from headrace.client import calls
from headrace.client.calls import StreamCall
from headrace.client.options import GenerateOptions
from headrace.client.requests import Prompt
from headrace.client.results import Completion, Generation
from headrace.contract.errors import HeadraceError, InvalidRequest
from headrace.services.rest import openai_answer as answer
from headrace.services.rest.event_stream import EventStreamResponse, open_all
from headrace.services.rest.field_naming import named_after
from headrace.services.rest.http_request import while_connected
from headrace.services.rest.openai_fields import SamplingBody, model_name
from headrace.services.rest.openai_prompts import PromptForms, prompts_of
from headrace.services.rest.sidecar import Exchange
from headrace.v1 import generate_service_pb2 as pb


class CompletionBody(SamplingBody):
    """A request to continue one or several prompts."""

    prompt: PromptForms
    """A text, token ids, or a list of either."""
    suffix: None = None
    """Not supported: models would have to be trained for it."""
    echo: bool | None = None
    """Begins each text with its prompt."""
    logprobs: int | None = None
    """Log-probabilities of the generated tokens and of this many rivals, in [0, 20]."""
    best_of: int | None = None

    def aliases(self) -> dict[str, str]:
        """Returns the names of fields of `headrace.v1` that have another one in a chat."""
        return super().aliases() | {"output.top_logprob_count": "logprobs"}

    def aliases_by_prompt(self, count: int) -> list[dict[str, str]]:
        """Returns the aliases for each of the calls; of several prompts an error says which one it is about."""
        aliases = self.aliases()
        if count == 1:
            return [aliases]
        return [aliases | {"text": f"prompt[{index}]", "token_ids": f"prompt[{index}]"} for index in range(count)]

    def prompts(self, limit: int) -> list[Prompt]:
        """Returns the prompts, one for each call.

        Raises:
            InvalidRequest: there are none or too many, or one is empty.
        """
        prompts = prompts_of(self.prompt)
        if not 1 <= len(prompts) <= limit:
            raise InvalidRequest.of("prompt", f"must hold 1 to {limit} prompts, not {len(prompts)}")
        return prompts

    def options(self, request_id: str) -> GenerateOptions:
        """Returns what the body asks for, for each prompt.

        Raises:
            InvalidRequest: two fields contradict each other.
        """
        if self.echo and self.logprobs is not None:
            raise InvalidRequest.of("logprobs", "cannot be given beside echo: the prompt's are not returned here")
        return {
            **self.sampling_options(request_id),
            "best_of": self.best_of,
            "token_logprobs": None if self.logprobs is None else True,
            "top_logprob_count": self.logprobs,
        }


class TextChoice(TypedDict):
    """One continuation."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class TextCompletion(TypedDict):
    """The continuations of all prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: answer.OpenAiUsage
    system_fingerprint: str


async def create_completion(request: Request, exchange: Exchange) -> Response:
    """Continues prompts, whole or as a stream."""
    body = await exchange.read(request, CompletionBody)
    prompts = body.prompts(exchange.sidecar.limits.client_batch_count)
    options = [body.options(exchange.router_request_id(index)) for index in range(len(prompts))]
    echoes = await while_connected(request, _echoes(exchange, body, prompts))
    headers = exchange.headers(body)
    identity = {
        "id": f"cmpl-{exchange.context.request_id}",
        "object": "text_completion",
        "created": int(time.time()),
    }
    asked = [_Asked(*entry) for entry in zip(prompts, options, body.aliases_by_prompt(len(prompts)), strict=True)]
    if not body.stream:
        generations = await while_connected(request, _generate_all(exchange, asked))
        return answer.json_response(identity | _merged(generations, echoes, body.logprobs or 0), headers)
    # None is begun before all have become messages.
    messages = [entry.stream_call() for entry in asked]
    streams = [exchange.link.stream(message, exchange.context) for message in messages]
    names = [entry.aliases for entry in asked]
    opened = await while_connected(request, open_all(streams, exchange.link.target, names))
    writers = [
        TextWriter(identity, first_index=index * (body.n or 1), echo=echo, top_count=body.logprobs)
        for index, echo in enumerate(echoes)
    ]

    def closing() -> bytes:
        if not body.wants_usage:
            return answer.DONE
        usage = answer.sum_usages(writer.usage for writer in writers)
        chunk = {**identity, "model": writers[0].model, "choices": [], "usage": usage}
        return b"data: %b\n\n%b" % (orjson.dumps(chunk), answer.DONE)

    return EventStreamResponse(list(zip(opened, writers, strict=True)), closing=closing, headers=headers)


@dataclass(frozen=True, slots=True)
class _Asked:
    """One of the prompts, what is asked for it, and what the caller called it."""

    prompt: Prompt
    options: GenerateOptions
    aliases: dict[str, str]

    def stream_call(self) -> StreamCall:
        with named_after((), self.aliases):
            return calls.stream(self.prompt, self.options)

    async def generate(self, exchange: Exchange) -> Generation:
        with named_after((), self.aliases):
            return await exchange.link.unary(calls.generate(self.prompt, self.options), exchange.context)


async def _generate_all(exchange: Exchange, asked: Sequence[_Asked]) -> list[Generation]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(entry.generate(exchange)) for entry in asked]
    except* HeadraceError as errors:
        # One is all that an answer can tell.
        raise _first(errors) from None
    return [task.result() for task in tasks]


def _first(group: BaseExceptionGroup[HeadraceError]) -> HeadraceError:
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found


async def _echoes(exchange: Exchange, body: CompletionBody, prompts: Sequence[Prompt]) -> list[str]:
    if not body.echo:
        return [""] * len(prompts)
    model = model_name(body.model)
    texts: list[str] = []
    for prompt in prompts:
        if isinstance(prompt, str):
            texts.append(prompt)
        else:
            call = calls.detokenize(prompt, model, include_special_tokens=None)
            texts.append(await exchange.link.unary(call, exchange.context))
    return texts


def _merged(generations: Sequence[Generation], echoes: Sequence[str], top_count: int) -> dict[str, object]:
    choices: list[TextChoice] = []
    for generation, echo in zip(generations, echoes, strict=True):
        choices += [_choice(completion, len(choices), echo, top_count) for completion in generation.completions]
    for index, choice in enumerate(choices):
        choice["index"] = index
    return {
        "model": generations[0].model,
        "choices": choices,
        "usage": answer.sum_usages(answer.usage_of(generation.usage) for generation in generations),
        "system_fingerprint": answer.SYSTEM_FINGERPRINT,
    }


def _choice(completion: Completion, index: int, echo: str, top_count: int) -> TextChoice:
    logprobs = answer.text_logprobs(completion.logprobs, top_count, len(echo))[0] if completion.logprobs else None
    return {
        "index": index,
        "text": echo + completion.text,
        "logprobs": logprobs,
        "finish_reason": answer.finish_reason(completion.end),
    }


_TEXT_TAIL: Final = b',"logprobs":null,"finish_reason":null}]}\n\n'


class TextWriter:
    """Writes the chunks of one prompt's completions."""

    def __init__(self, identity: dict[str, Any], *, first_index: int, echo: str, top_count: int | None) -> None:
        self._identity = identity
        self._first_index = first_index
        self._echo = echo
        self._top_count = top_count
        self._head = b""
        self._text_heads: dict[int, bytes] = {}
        """What goes before the text of each completion."""
        self._offsets: dict[int, int] = {}
        self._echoed: set[int] = set()
        self.model = ""
        """Name of the model that answers."""
        self.usage = answer.sum_usages(())
        """Token counts, once it is over."""

    def started(self, started: pb.GenerationStarted) -> bytes:
        """Keeps what every chunk repeats."""
        self.model = started.model
        head = orjson.dumps(self._identity | {"model": started.model, "system_fingerprint": answer.SYSTEM_FINGERPRINT})
        self._head = b"data: " + head[:-1] + b',"choices":'
        return b""

    def delta(self, delta: pb.GenerationDelta) -> bytes:
        """Returns a chunk, or nothing while text is withheld."""
        text = delta.text
        index = delta.index
        if self._echo and index not in self._echoed:
            self._echoed.add(index)
            text = self._echo + text
        if self._top_count is None:
            if not text:
                return b""
            text_head = self._text_heads.get(index)
            if text_head is None:
                text_head = b'%b[{"index":%d,"text":' % (self._head, self._first_index + index)
                self._text_heads[index] = text_head
            return text_head + orjson.dumps(text) + _TEXT_TAIL
        offset = self._offsets.get(index, 0)
        logprobs, self._offsets[index] = answer.text_logprobs(delta.logprobs, self._top_count, offset)
        return self._chunk(index, text, logprobs, None)

    def finished(self, finished: pb.GenerationFinished) -> bytes:
        """Returns the reasons to end."""
        self.usage = answer.usage_of(finished.usage)
        return b"".join(self._chunk(end.index, "", None, answer.streamed_finish_reason(end)) for end in finished.ends)

    def failed(self, error: HeadraceError) -> bytes:
        """Returns the error as an event."""
        return answer.error_event(error)

    def _chunk(self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> bytes:
        choice = {"index": self._first_index + index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return b"%b%b}\n\n" % (self._head, orjson.dumps([choice]))
