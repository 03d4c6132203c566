"""A request from the client's words to the events that answer it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from headrace.contract.chat_output import ChatOutput
from headrace.contract.pooling import PoolingOptions
from headrace.contract.sampling import (
    LogprobOptions,
    RowStopRules,
    SamplingOptions,
    SamplingParams,
    StoppingOptions,
    TextStopRules,
    completion_seed,
)

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A prompt as text."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """A prompt as token ids, used as they are."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call of a tool that the assistant made."""

    id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    content: str
    """The text parts, joined."""
    has_image: bool = False
    """Whether a part was an image."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    reasoning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str
    parameters: Mapping[str, JsonValue]
    """JSON Schema of the arguments."""


class ToolChoiceMode(StrEnum):
    """How free the model is to call a tool."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"
    NAMED = "named"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A conversation, rendered by the model's chat template."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoiceMode | None = None
    """None when the request did not say."""
    tool_choice_name: str = ""
    template_arguments: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    continue_final_message: bool = False
    template: str | None = None
    """A template in place of the model's."""
    parallel_tool_calls: bool = True
    """Whether one completion may make several calls; else it ends after the first."""
    raw_output: bool = False
    """Whether reasoning and tool calls stay in the text."""


Prompt = TextPrompt | TokenPrompt | ChatPrompt


class ConstraintKind(StrEnum):
    """A notation of languages."""

    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICES = "choices"
    LARK = "lark_grammar"
    EBNF = "ebnf_grammar"


@dataclass(frozen=True, slots=True)
class Constraint:
    """A language that the completion has to belong to."""

    kind: ConstraintKind
    text: str
    """The language; for CHOICES a JSON array of strings, for JSON_OBJECT empty."""
    opening: str = ""
    """What has to come before it: rules in Lark, from the rule `opening`. Empty is nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """What a request wants beside the text. None means the default."""

    token_logprobs: bool | None = None
    top_logprob_count: int | None = None
    prompt_logprobs: bool | None = None
    include_special_tokens: bool | None = None
    processed_logprobs: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WatermarkOptions:
    """What a request says of its watermark. None means the server's default."""

    enabled: bool = True
    key: str = ""
    """Name of the key; empty is the server's default key."""
    gamma: float | None = None
    delta: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What a client asked, field by field as in headrace.v1.GenerateRequest; nothing is checked yet."""

    prompt: Prompt | None
    model: str = ""
    tenant: str = ""
    """For whom the caller calls, as its key says; empty where no keys are asked for. No field: nobody claims it."""
    request_id: str = ""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stopping: StoppingOptions = field(default_factory=StoppingOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    constraint: Constraint | None = None
    adapter: str = ""
    priority: int | None = None
    cache_salt: str = ""
    completion_count: int | None = None
    best_of: int | None = None
    truncate_prompt_token_count: int | None = None
    add_special_tokens: bool | None = None
    watermark: WatermarkOptions | None = None
    """None means the server's default."""
    speculation: bool | None = None
    """Whether tokens may be drafted; None means wherever the engine does."""
    deadline_s: float | None = None
    """Moment on the process's clock when the caller stops waiting; None never."""
    trace_parent: str = ""
    """W3C's name of the span that this belongs to; empty where nobody traces it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidRequest:
    """A request that can run as it stands: checked, tokenized, every default resolved."""

    request_id: str
    model: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    row_stop: RowStopRules
    text_stop: TextStopRules
    logprobs: LogprobOptions
    max_new_token_count: int
    """As asked or by default; `row_stop.token_limit` may be lower because of the context."""
    completion_count: int = 1
    """Completions to return."""
    best_of: int = 1
    """Completions to generate; >= `completion_count`. With more, the likeliest are returned."""
    include_special_tokens: bool = False
    constraint: Constraint | None = None
    """As asked, or what holds the model to a tool call."""
    grammar: str = ""
    """The constraint as engines that take steps read it: in llguidance's notation, known to compile."""
    chat_output: ChatOutput = field(default_factory=ChatOutput)
    """What is taken out of the text; by default nothing."""
    adapter: str = ""
    """Digest of the adapter, which a name stood for when the request came; empty for the base model."""
    priority: int = 0
    cache_salt: str = ""
    deadline_s: float | None = None
    pooling: PoolingOptions | None = None
    """Asks for a vector made of the prompt's hidden states, and for no token."""
    may_draft: bool = True
    """Whether its tokens may be drafted, where the engine does that."""
    tenant: str = ""
    """Whose it is: tenants share an engine evenly."""
    trace_parent: str = ""
    """As asked."""

    @property
    def prompt_token_count(self) -> int:
        """Length of the prompt in tokens; >= 1."""
        return len(self.prompt_token_ids)

    @property
    def is_ranked(self) -> bool:
        """Whether more completions are generated than returned."""
        return self.best_of > self.completion_count

    def of_completion(self, index: int) -> "ValidRequest":
        """Returns the request for one completion alone: it generates just what this one does at `index`."""
        if self.best_of == 1:
            return self
        return replace(
            self,
            sampling=replace(self.sampling, seed=completion_seed(self.sampling.seed, index)),
            # The prompt's are reported once for all completions; a rank needs those of the tokens.
            logprobs=replace(
                self.logprobs,
                prompt=self.logprobs.prompt and index == 0,
                sampled=self.logprobs.sampled or self.is_ranked,
            ),
            completion_count=1,
            best_of=1,
        )


class FinishReason(StrEnum):
    """Why a completion ended normally."""

    END_OF_SEQUENCE = "end_of_sequence"
    STOP_SEQUENCE = "stop_sequence"
    STOP_TOKEN = "stop_token"
    LENGTH = "length"
    CONTEXT_LIMIT = "context_limit"
    TIME_LIMIT = "time_limit"
    CANCELLED = "cancelled"
    TOOL_CALL = "tool_call"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """The log-probability of one token and of its likeliest rivals."""

    token_id: int
    text: str
    logprob: float | None
    """Natural logarithm; None for the first prompt token."""
    rank: int
    """1 for the likeliest."""
    top: tuple["TokenLogprob", ...] = ()
    byte_offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationStarted:
    """The request left the queue. Sent once, first."""

    request_id: str
    model: str
    prompt_token_count: int
    cached_token_count: int
    seed: int
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """A piece of a tool call. Pieces with the same `index` make up one call."""

    index: int
    """Which call of its completion, from 0."""
    id: str = ""
    """Set in the first piece alone, as is `name`."""
    name: str = ""
    arguments_json: str = ""
    """Goes on with the arguments, the text of a JSON object."""


@dataclass(slots=True)
class GenerationDelta:
    """Text and tokens since the delta before.

    Not frozen, since one is made for every token and that would take several times as long. Nobody changes one.
    """

    text: str
    """Final text; may be empty. Never splits a character."""
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    index: int = 0
    reasoning: str = ""
    """Final, like `text`, which it precedes in a completion."""
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionEnd:
    """Why a completion ended."""

    reason: FinishReason
    generated_token_count: int
    """The ending token included."""
    seed: int
    """A request with it and one completion draws the same."""
    stop_sequence: str = ""
    stop_token_id: int | None = None
    mean_logprob: float | None = None
    """Of its tokens, in the model's own distribution; None unless `best_of` ranked it and it has a token."""
    index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How many tokens a request took."""

    prompt_token_count: int
    cached_token_count: int
    generated_token_count: int
    drafted_token_count: int = 0
    """Tokens that were guessed ahead."""
    accepted_token_count: int = 0
    """Guessed tokens that turned out right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where a request's time went, in seconds."""

    queued_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationFinished:
    """All completions ended. Sent once, last."""

    ends: tuple[CompletionEnd, ...]
    usage: Usage
    timings: Timings


GenerationEvent = GenerationStarted | GenerationDelta | GenerationFinished
