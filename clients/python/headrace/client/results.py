"""What generation brings back.

These types belong to the client: a server of a later version may send finish
reasons that this one does not know, and what the server passes around inside
may change without breaking anyone's code.
"""

from dataclasses import dataclass
from enum import StrEnum

from headrace.client.chat import Message, ToolCall


class FinishReason(StrEnum):
    """Why a completion ended."""

    UNKNOWN = "unknown"
    """A reason newer than this client."""
    END_OF_SEQUENCE = "end_of_sequence"
    """The model produced an end-of-sequence token."""
    STOP_SEQUENCE = "stop_sequence"
    """One of `stop_sequences` matched."""
    STOP_TOKEN = "stop_token"
    """One of `stop_token_ids` was produced."""
    LENGTH = "length"
    """`max_new_token_count` was reached."""
    CONTEXT_LIMIT = "context_limit"
    """The model's context is full."""
    TIME_LIMIT = "time_limit"
    """`time_limit_s` was reached."""
    CANCELLED = "cancelled"
    """Someone called `abort`; what was generated is kept."""
    TOOL_CALL = "tool_call"
    """A tool call is complete, and `parallel_tool_calls` was False."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """The log-probability of one token and of its likeliest rivals."""

    token_id: int
    text: str
    """The token's text; bytes that are no UTF-8 of their own are replaced."""
    logprob: float | None
    """Natural logarithm of its probability; None for the first prompt token."""
    rank: int
    """1 for the likeliest; 0 for the first prompt token."""
    top: tuple["TokenLogprob", ...]
    """The likeliest tokens, likeliest first."""
    byte_offset: int
    """Offset of the token's first byte in the completion's bytes; for a prompt token, in the bytes of all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How many tokens a request took."""

    prompt_token_count: int
    cached_token_count: int
    """Prompt tokens found in the prefix cache when the request started."""
    generated_token_count: int
    """Over all completions, those that `best_of` left out and ending tokens included."""
    drafted_token_count: int = 0
    """Tokens that were guessed ahead."""
    accepted_token_count: int = 0
    """Guessed tokens that turned out right: steps that were saved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where a request's time went, as the server measured it."""

    queued_s: float
    """From arrival until its first step was planned."""
    prefill_s: float
    """From then until the first token."""
    decode_s: float
    """From then until the last token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionEnd:
    """Why and where one completion ended."""

    index: int
    reason: FinishReason
    stop_sequence: str
    """The sequence that matched, when `reason` is STOP_SEQUENCE; else empty."""
    stop_token_id: int | None
    """The ending token, when `reason` is STOP_TOKEN or END_OF_SEQUENCE."""
    generated_token_count: int
    """The ending token included."""
    seed: int
    """The seed of this completion: a request with it, for one completion, gives the same."""
    mean_logprob: float | None
    """Mean log-probability of the generated tokens, by which `best_of` ranked the completions; else None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One whole completion."""

    index: int
    """Position among the completions of its request, from 0."""
    text: str
    """Without the reasoning and the tool calls below."""
    token_ids: tuple[int, ...]
    """Ending tokens included."""
    logprobs: tuple[TokenLogprob, ...]
    """Of the generated tokens, if asked for."""
    end: CompletionEnd
    reasoning: str = ""
    """What the model thought before it answered, for models that mark it."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls of the tools that the request gave, in order."""

    @property
    def reason(self) -> FinishReason:
        """Why it ended."""
        return self.end.reason

    @property
    def message(self) -> Message:
        """The assistant's turn, as the next request of the conversation takes it."""
        return Message("assistant", self.text, tool_calls=self.tool_calls, reasoning=self.reasoning)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """The answer to a request: one completion, or as many as `completion_count` asked for."""

    request_id: str
    model: str
    """Name of the model that answered."""
    completions: tuple[Completion, ...]
    """By index; never empty. With `best_of` the likeliest first."""
    usage: Usage
    timings: Timings
    seed: int
    """The seed in use: sent again with the same request it gives the same completions."""
    prompt_logprobs: tuple[TokenLogprob, ...]
    """Of the prompt's tokens, if asked for."""

    @property
    def text(self) -> str:
        """The text of the first completion."""
        return self.completions[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The token ids of the first completion."""
        return self.completions[0].token_ids

    @property
    def reason(self) -> FinishReason:
        """Why the first completion ended."""
        return self.completions[0].reason

    @property
    def reasoning(self) -> str:
        """The reasoning of the first completion."""
        return self.completions[0].reasoning

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls of the first completion."""
        return self.completions[0].tool_calls

    @property
    def message(self) -> Message:
        """The first completion as a turn, as the next request of the conversation takes it."""
        return self.completions[0].message


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The first event of a stream: the request left the queue."""

    request_id: str
    model: str
    prompt_token_count: int
    cached_token_count: int
    """Prompt tokens found in the prefix cache."""
    seed: int
    """As in `Generation`."""
    prompt_logprobs: tuple[TokenLogprob, ...]
    """Of the prompt's tokens, if asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """A piece of a tool call. Pieces with the same `index` make up one call."""

    index: int
    """Which call of its completion, from 0."""
    id: str
    """Set in the first piece alone, as is `name`."""
    name: str
    arguments_json: str
    """Goes on with the arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What a stream brought since the delta before."""

    index: int
    """Which completion it belongs to, from 0."""
    text: str
    """Final text, never a part of a character. Empty while a character, a possible stop sequence or a possible tool
    call is open."""
    token_ids: tuple[int, ...]
    """Several when the reader was slower than the model."""
    logprobs: tuple[TokenLogprob, ...]
    """Of these tokens, if asked for."""
    reasoning: str = ""
    """Final, like `text`, which it precedes in a completion."""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    """Pieces of tool calls, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The last event of a stream."""

    ends: tuple[CompletionEnd, ...]
    """Why each completion ended, by index; never empty."""
    usage: Usage
    timings: Timings

    @property
    def reason(self) -> FinishReason:
        """Why the first completion ended."""
        return self.ends[0].reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """The vector of one input."""

    values: tuple[float, ...]
    """Its numbers, of float32 precision."""
    token_count: int
    """Length of the input in tokens, after truncation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """The answer to `embed`."""

    request_id: str
    model: str
    """Name of the model that answered."""
    embeddings: tuple[Embedding, ...]
    """One for each input, in their order."""
    token_count: int
    """Tokens of all inputs, after truncation."""
    cached_token_count: int
    """Those of them that were found in the prefix cache."""
    queued_s: float
    """From arrival until its first step was planned."""
    computed_s: float
    """From then until the last vector."""

    @property
    def vectors(self) -> tuple[tuple[float, ...], ...]:
        """The numbers alone, in the order of the inputs."""
        return tuple(embedding.values for embedding in self.embeddings)


@dataclass(frozen=True, slots=True)
class TextSpan:
    """A half-open range of bytes in a UTF-8 text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenization:
    """The token ids of a prompt, exactly as generation would use them."""

    token_ids: tuple[int, ...]
    text: str
    """The text that was tokenized; for a conversation what the template rendered."""
    spans: tuple[TextSpan, ...]
    """The bytes of `text` that each token covers, if asked for."""
