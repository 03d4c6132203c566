"""A completion as protocols with blocks see it: reasoning, text and tool calls in order, whole or as a stream."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from headrace.client.results import Completion
from headrace.v1 import generate_service_pb2 as pb


class BlockKind(StrEnum):
    """What a block holds."""

    REASONING = "reasoning"
    TEXT = "text"
    TOOL_CALL = "tool_call"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A part of an answer."""

    index: int
    """Position among the blocks of the answer, from 0."""
    kind: BlockKind
    text: str
    """The reasoning or the text; of a tool call, its arguments."""
    call_id: str = ""
    """Of a tool call."""
    name: str = ""
    """Of the called tool."""


def blocks_of(completion: Completion) -> list[Block]:
    """Returns the blocks of a whole completion, in the order in which a stream brings them."""
    blocks: list[Block] = []
    if completion.reasoning:
        blocks.append(Block(index=0, kind=BlockKind.REASONING, text=completion.reasoning))
    if completion.text:
        blocks.append(Block(index=len(blocks), kind=BlockKind.TEXT, text=completion.text))
    for call in completion.tool_calls:
        blocks.append(
            Block(
                index=len(blocks),
                kind=BlockKind.TOOL_CALL,
                text=call.arguments_json,
                call_id=call.id,
                name=call.name,
            )
        )
    return blocks


@dataclass(frozen=True, slots=True)
class Opened:
    """A block begins; its text is empty."""

    block: Block


@dataclass(frozen=True, slots=True)
class Grown:
    """A block goes on."""

    block: Block
    piece: str


@dataclass(frozen=True, slots=True)
class Closed:
    """A block is complete, its text is whole."""

    block: Block


@dataclass(slots=True)
class BlockReader:
    """Divides the deltas of one completion into blocks. One block is open at a time."""

    closed: list[Block] = field(default_factory=list)
    """The blocks that are complete."""
    _open: Block | None = None
    _call_index: int = -1
    _pieces: list[str] = field(default_factory=list)

    def grow_text(self, text: str) -> Block | None:
        """Goes on with the open block and returns it if that one is a text; the usual case, told apart at no cost."""
        if self._open is None or self._open.kind is not BlockKind.TEXT:
            return None
        self._pieces.append(text)
        return self._open

    def read(self, delta: pb.GenerationDelta) -> Iterator[Opened | Grown | Closed]:
        """Yields what a delta changes."""
        if delta.reasoning:
            yield from self._grow(BlockKind.REASONING, delta.reasoning)
        if delta.text:
            yield from self._grow(BlockKind.TEXT, delta.text)
        for piece in delta.tool_calls:
            if piece.index != self._call_index:
                yield from self.close()
                self._call_index = piece.index
                yield self._begin(BlockKind.TOOL_CALL, call_id=piece.id, name=piece.name)
            if piece.arguments_json:
                yield self._go_on(piece.arguments_json)

    def close(self) -> Iterator[Closed]:
        """Yields the end of the block that is open, if one is."""
        if self._open is None:
            return
        block, self._open = self._open, None
        whole = Block(
            index=block.index, kind=block.kind, text="".join(self._pieces), call_id=block.call_id, name=block.name
        )
        self.closed.append(whole)
        yield Closed(whole)

    def _grow(self, kind: BlockKind, text: str) -> Iterator[Opened | Grown | Closed]:
        if self._open is None or self._open.kind is not kind:
            yield from self.close()
            yield self._begin(kind)
        yield self._go_on(text)

    def _begin(self, kind: BlockKind, *, call_id: str = "", name: str = "") -> Opened:
        self._open = Block(index=len(self.closed), kind=kind, text="", call_id=call_id, name=name)
        self._pieces = []
        return Opened(self._open)

    def _go_on(self, text: str) -> Grown:
        assert self._open is not None
        self._pieces.append(text)
        return Grown(self._open, text)
