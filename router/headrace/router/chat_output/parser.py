"""Tells apart what one completion of a chat consists of: reasoning, text and tool calls."""

import base64
import hashlib
from dataclasses import dataclass

from headrace.contract.chat_output import ChatOutput
from headrace.contract.generation import ToolCallDelta
from headrace.router.chat_output.formats import REASONING_TAGS, call_parser
from headrace.router.chat_output.found_output import CallParser, FoundCall, FoundText
from headrace.router.chat_output.reasoning import ReasoningSplitter

_CALL_ID_CHARACTERS = 9
"""Mistral's templates refuse identifiers of any other length; the others take what they get."""


@dataclass(frozen=True, slots=True)
class ChatPieces:
    """What has become final of a completion."""

    reasoning: str
    text: str
    tool_calls: tuple[ToolCallDelta, ...]


class ChatOutputParser:
    """Follows one completion. How its text is divided into pieces changes nothing."""

    __slots__ = ("_call_count", "_calls", "_id_base", "_is_single", "_reasoning")

    def __init__(self, output: ChatOutput, id_base: str) -> None:
        """Starts where the completion does.

        Args:
            output: What to look for.
            id_base: Text that is another for every completion of a conversation; the identifiers of calls
                depend on it.
        """
        self._reasoning: ReasoningSplitter | None = None
        if output.reasoning_format is not None:
            begin, end = REASONING_TAGS[output.reasoning_format]
            self._reasoning = ReasoningSplitter(begin, end, starts_inside=output.starts_in_reasoning)
        self._is_single = not output.parallel_tool_calls
        self._calls: CallParser | None = None
        if output.tool_format is not None:
            self._calls = call_parser(output.tool_format, output.tool_names, 1 if self._is_single else None)
        self._id_base = id_base
        self._call_count = 0

    @property
    def is_complete(self) -> bool:
        """Whether the only call that the request allows has come. What follows is dropped."""
        return self._is_single and self._call_count > 0

    @property
    def may_complete(self) -> bool:
        """Whether text can end the completion. Then it has to be pushed token by token."""
        return self._is_single and self._calls is not None

    def push(self, text: str) -> ChatPieces:
        """Returns what this text makes final."""
        reasoning, answer = self._reasoning.push(text) if self._reasoning is not None else ("", text)
        found = self._calls.push(answer) if self._calls is not None else FoundText(answer)
        return self._pieces(reasoning, found)

    def flush(self) -> ChatPieces:
        """Returns what is left when no text follows. Call once, last."""
        reasoning, answer = self._reasoning.flush() if self._reasoning is not None else ("", "")
        if self._calls is None:
            return self._pieces(reasoning, FoundText(answer))
        found, rest = self._calls.push(answer), self._calls.flush()
        return self._pieces(reasoning, FoundText(found.text + rest.text, found.calls + rest.calls))

    def _pieces(self, reasoning: str, found: FoundText) -> ChatPieces:
        return ChatPieces(reasoning, found.text, tuple(self._typed(call) for call in found.calls))

    def _typed(self, call: FoundCall) -> ToolCallDelta:
        index = self._call_count
        self._call_count += 1
        return ToolCallDelta(index=index, id=self._call_id(index), name=call.name, arguments_json=call.arguments_json)

    def _call_id(self, index: int) -> str:
        digest = hashlib.sha256(f"{self._id_base} {index}".encode()).digest()
        letters = base64.b32encode(digest).decode("ascii").lower()
        return letters[:_CALL_ID_CHARACTERS]
