"""Writes the stream of `/v1/responses`: items that open, grow and close, each event with its number."""

from collections.abc import Iterator
from typing import Any

import orjson

from headrace.client import convert
from headrace.contract.errors import HeadraceError
from headrace.services.rest import responses_answer as answer
from headrace.services.rest.answer_blocks import Block, BlockKind, BlockReader, Closed, Grown, Opened
from headrace.services.rest.responses_fields import ResponsesBody
from headrace.services.rest.responses_logprobs import tokens_of_text, write_logprobs
from headrace.v1 import generate_service_pb2 as pb

_PIECES = {
    BlockKind.REASONING: ("response.reasoning_text", "text"),
    BlockKind.TEXT: ("response.output_text", "text"),
    BlockKind.TOOL_CALL: ("response.function_call_arguments", "arguments"),
}


class ResponseWriter:
    """Writes the events of one response."""

    def __init__(self, body: ResponsesBody) -> None:
        self._body = body
        self._blocks = BlockReader()
        self._response = answer.opened_response(body, "", "")
        self._number = 0
        self._tokens: list[pb.TokenLogprob] = []
        """All that came with log-probabilities; none where nobody asked for them."""
        self._sent_count = 0
        """Of these, tokens that an event has told of."""

    def started(self, started: pb.GenerationStarted) -> bytes:
        """Opens the response."""
        self._response = answer.opened_response(self._body, started.request_id, started.model)
        opened = {"response": self._response}
        return self._event("response.created", opened) + self._event("response.in_progress", opened)

    def delta(self, delta: pb.GenerationDelta) -> bytes:
        """Returns what new tokens add to the items, or nothing while text is withheld."""
        if self._body.wants_logprobs:
            self._tokens.extend(delta.logprobs)
        elif delta.text and not (delta.reasoning or delta.tool_calls):
            block = self._blocks.grow_text(delta.text)
            if block is not None:
                return self._text_delta(block, delta.text)
        return b"".join(event for change in self._blocks.read(delta) for event in self._change(change))

    def finished(self, finished: pb.GenerationFinished) -> bytes:
        """Closes the item and the response.

        Raises:
            RequestAborted: someone ended the request.
        """
        typed = convert.finished_from_proto(finished)
        [end] = typed.ends
        closing = list(self._blocks.close())
        logprobs = self._logprobs_of(self._closed_text(BlockKind.TEXT))
        response = answer.ended_response(self._response, self._blocks.closed, end, typed.usage, logprobs)
        status = response["status"]
        events = [event for change in closing for event in self._change(change, status)]
        events.append(self._event(f"response.{status}", {"response": response}))
        return b"".join(events)

    def failed(self, error: HeadraceError) -> bytes:
        """Returns the error as the last event."""
        return self._event("response.failed", {"response": answer.failed_response(self._response, error)})

    def _text_delta(self, block: Block, text: str) -> bytes:
        number, self._number = self._number, self._number + 1
        return (
            b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":%d,'
            b'"item_id":"%b","output_index":%d,"content_index":0,"delta":%b,"logprobs":[]}\n\n'
            % (number, self._item_id(block).encode(), block.index, orjson.dumps(text))
        )

    def _change(self, change: Opened | Grown | Closed, status: str = "completed") -> Iterator[bytes]:
        block = change.block
        kind, key = _PIECES[block.kind]
        where: dict[str, Any] = {"item_id": self._item_id(block), "output_index": block.index}
        has_parts = block.kind is not BlockKind.TOOL_CALL
        place = where | {"content_index": 0} if has_parts else where
        is_text = block.kind is BlockKind.TEXT
        match change:
            case Opened():
                item = answer.output_item(block, self._response["id"], "in_progress", [])
                yield self._event("response.output_item.added", {"output_index": block.index, "item": item})
                if has_parts:
                    part = answer.content_part(block, [])
                    yield self._event("response.content_part.added", place | {"part": part})
            case Grown(_, piece):
                logprobs = {"logprobs": self._new_logprobs()} if is_text else {}
                yield self._event(f"{kind}.delta", place | {"delta": piece} | logprobs)
            case Closed():
                part = answer.content_part(block, self._logprobs_of(block.text) if is_text else [])
                logprobs = {"logprobs": part["logprobs"]} if is_text else {}
                yield self._event(f"{kind}.done", place | {key: block.text} | logprobs)
                if has_parts:
                    yield self._event("response.content_part.done", place | {"part": part})
                item = answer.output_item(block, self._response["id"], status, [part])
                yield self._event("response.output_item.done", {"output_index": block.index, "item": item})

    def _new_logprobs(self) -> list[dict[str, Any]]:
        """Returns those of the tokens that came since the last event that told of some."""
        new, self._sent_count = self._tokens[self._sent_count :], len(self._tokens)
        return write_logprobs(new)

    def _logprobs_of(self, text: str) -> list[dict[str, Any]]:
        return write_logprobs(tokens_of_text(self._tokens, text, self._closed_text(BlockKind.REASONING)))

    def _closed_text(self, kind: BlockKind) -> str:
        return "".join(block.text for block in self._blocks.closed if block.kind is kind)

    def _item_id(self, block: Block) -> str:
        return answer.item_id(block, self._response["id"])

    def _event(self, kind: str, content: dict[str, Any]) -> bytes:
        number, self._number = self._number, self._number + 1
        data = orjson.dumps({"type": kind, "sequence_number": number, **content})
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)
