"""What to look for in the completions of a chat, and how the model writes it."""

from dataclasses import dataclass
from enum import StrEnum


class ToolFormat(StrEnum):
    """How a model writes tool calls."""

    HERMES = "hermes"
    """JSON between <tool_call> tags, as Hermes and Qwen models."""
    LLAMA3 = "llama3"
    """JSON in place of an answer."""
    MISTRAL = "mistral"
    """Behind [TOOL_CALLS]."""
    DEEPSEEK = "deepseek"
    """A name and its arguments between marks."""


class ReasoningFormat(StrEnum):
    """How a model marks its reasoning."""

    THINK = "think"
    """Between <think> tags."""
    MISTRAL = "mistral"
    """Between [THINK] tags."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOutput:
    """What is taken out of the text of a request's completions."""

    tool_format: ToolFormat | None = None
    """None leaves tool calls in the text."""
    tool_names: frozenset[str] = frozenset()
    parallel_tool_calls: bool = True
    """Whether a completion goes on after its first call."""
    reasoning_format: ReasoningFormat | None = None
    """None leaves reasoning in the text."""
    starts_in_reasoning: bool = False
    """Whether the prompt ends within the reasoning."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is taken out."""
        return self.tool_format is None and self.reasoning_format is None
