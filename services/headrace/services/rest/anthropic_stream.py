"""Writes Anthropic's stream: a message that opens, blocks that grow one after the other, and why it stopped."""

from typing import Any

import orjson

from headrace.client import convert
from headrace.contract.errors import HeadraceError
from headrace.services.rest import anthropic_answer as answer
from headrace.services.rest.answer_blocks import BlockKind, BlockReader, Closed, Grown, Opened
from headrace.v1 import generate_service_pb2 as pb

_PIECES = {
    BlockKind.REASONING: ("thinking_delta", "thinking"),
    BlockKind.TEXT: ("text_delta", "text"),
    BlockKind.TOOL_CALL: ("input_json_delta", "partial_json"),
}


class MessageWriter:
    """Writes the events of one message."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._blocks = BlockReader()

    def started(self, started: pb.GenerationStarted) -> bytes:
        """Opens the message."""
        cached_count = started.cached_token_count
        message: answer.AnthropicAnswer = {
            "id": f"msg_{started.request_id}",
            "type": "message",
            "role": "assistant",
            "model": started.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {
                "input_tokens": started.prompt_token_count - cached_count,
                "output_tokens": 0,
                "cache_read_input_tokens": cached_count,
                "cache_creation_input_tokens": 0,
            },
        }
        return _event("message_start", {"message": message})

    def delta(self, delta: pb.GenerationDelta) -> bytes:
        """Returns what new tokens add to the blocks, or nothing while text is withheld."""
        if delta.text and not (delta.reasoning or delta.tool_calls):
            block = self._blocks.grow_text(delta.text)
            if block is not None:
                return (
                    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
                    b'"delta":{"type":"text_delta","text":%b}}\n\n' % (block.index, orjson.dumps(delta.text))
                )
        return b"".join(_change(change) for change in self._blocks.read(delta))

    def finished(self, finished: pb.GenerationFinished) -> bytes:
        """Closes the block and the message.

        Raises:
            RequestAborted: someone ended the request.
        """
        events = [_change(change) for change in self._blocks.close()]
        has_tool_calls = any(block.kind is BlockKind.TOOL_CALL for block in self._blocks.closed)
        typed = convert.finished_from_proto(finished)
        [end] = typed.ends
        delta = {
            "stop_reason": answer.stop_reason(end, has_tool_calls=has_tool_calls),
            "stop_sequence": end.stop_sequence or None,
        }
        events.append(_event("message_delta", {"delta": delta, "usage": answer.usage_of(typed.usage)}))
        events.append(_event("message_stop", {}))
        return b"".join(events)

    def failed(self, error: HeadraceError) -> bytes:
        """Returns the error as an event."""
        return b"event: error\ndata: %b\n\n" % orjson.dumps(answer.error_body(error, self._request_id))


def _change(change: Opened | Grown | Closed) -> bytes:
    index = change.block.index
    match change:
        case Opened(block):
            return _event("content_block_start", {"index": index, "content_block": answer.content_block(block)})
        case Grown(block, piece):
            kind, key = _PIECES[block.kind]
            return _event("content_block_delta", {"index": index, "delta": {"type": kind, key: piece}})
        case Closed():
            return _event("content_block_stop", {"index": index})


def _event(kind: str, content: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **content}))
