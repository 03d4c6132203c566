"""Checks each field of a request that can be judged without its tokens, and names every one that is wrong."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from headrace.contract.embedding import EmbeddingRequest
from headrace.contract.errors import FieldViolation
from headrace.contract.generation import (
    ChatPrompt,
    GenerationRequest,
    OutputOptions,
    TextPrompt,
    TokenPrompt,
    ToolChoiceMode,
)
from headrace.contract.sampling import SamplingOptions, StoppingOptions
from headrace.router.chat_template import RESERVED_ARGUMENTS
from headrace.router.constraint_notation import find_constraint_violations
from headrace.router.model_card import ModelCard
from headrace.router.sampling_ranges import LENGTH_DECAY_RANGE, LOGIT_BIAS_RANGE, SAMPLING_RANGES, SEED_END, Range

_SHOWN_CHARACTERS = 40
_REQUEST_ID_CHARACTERS = 128
_CACHE_SALT_SIZE_BYTES = 256
_TOOL_NAME_CHARACTERS = 64
_TOOL_COUNT = 128
_LOGIT_BIAS_COUNT = 1024
_BANNED_WORD_COUNT = 64
_BANNED_WORD_SIZE_BYTES = 256
_PRIORITY_RANGE = Range(low=-10, high=10, neutral=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What a request may ask for, as `RouterService.GetModel` reports it."""

    context_token_count: int
    """Longest prompt plus completion."""
    prompt_token_count: int
    """Longest prompt; less than the context."""
    stop_sequence_count: int = 16
    stop_sequence_size_bytes: int = 1024
    stop_token_count: int = 64
    completion_count: int = 16
    """Most completions of one prompt, those that `best_of` leaves out included."""
    top_logprob_count: int = 20
    embedding_input_count: int = 64
    """Most inputs of one request for vectors."""


Violations = Iterator[FieldViolation]


def find_violations(request: GenerationRequest, limits: RequestLimits, card: ModelCard) -> Violations:
    """Yields everything that is wrong with a request, but for what only its tokens tell.

    Lazy: a caller can stop early, as a request may hold a million mistakes.
    """
    yield from _prompt_violations(request, card.vocabulary_size)
    yield from _sampling_violations(request.sampling, card.vocabulary_size)
    yield from _stopping_violations(request.stopping, limits, card)
    yield from _output_violations(request.output, limits)
    yield from _common_violations(request)
    yield from _completion_violations(request, limits)
    yield from _constraint_violations(request)
    yield from _at_least("truncate_prompt_token_count", request.truncate_prompt_token_count, 1)


def find_embedding_violations(
    request: EmbeddingRequest, limits: RequestLimits, card: ModelCard, *, hidden_size: int
) -> Violations:
    """Yields everything that is wrong with a request for vectors, but for what only its tokens tell."""
    if not 1 <= len(request.inputs) <= limits.embedding_input_count:
        yield FieldViolation(
            "inputs", f"must have 1 to {limits.embedding_input_count} entries, has {len(request.inputs)}"
        )
    for index, entry in enumerate(request.inputs):
        match entry:
            case None:
                yield FieldViolation(f"inputs[{index}]", "one of text and token_ids must be set")
            case TextPrompt(text=""):
                yield FieldViolation(f"inputs[{index}].text", "must not be empty")
            case TokenPrompt(token_ids=()):
                yield FieldViolation(f"inputs[{index}].token_ids", "must not be empty")
            case TokenPrompt(token_ids=token_ids):
                yield from _token_violation(f"inputs[{index}].token_ids.ids", token_ids, card.vocabulary_size)
            case TextPrompt():
                pass
    if request.pooling is None:
        yield FieldViolation("pooling", "must be set: the model's makers say which one it was trained for")
    if request.dimension_count is not None and not 1 <= request.dimension_count <= hidden_size:
        yield out_of_range("dimension_count", f"[1, {hidden_size}]", request.dimension_count)
    yield from _at_least("truncate_token_count", request.truncate_token_count, 1)
    yield from _common_violations(request)


def prompt_field(request: GenerationRequest) -> str:
    """Returns the path of the form that the prompt has."""
    match request.prompt:
        case TextPrompt():
            return "text"
        case TokenPrompt():
            return "token_ids"
        case ChatPrompt():
            return "chat"
        case None:
            return "prompt"


def out_of_range(field: str, allowed: object, value: object) -> FieldViolation:
    """Returns the violation of a range."""
    return FieldViolation(field, f"must be in {allowed}, is {shown(value)}")


def shown(value: object) -> str:
    """Returns a value for a message, shortened: what a client sent may be long."""
    # A status travels in headers, where other characters take nine bytes each.
    text = ascii(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def _prompt_violations(request: GenerationRequest, vocabulary_size: int) -> Violations:
    match request.prompt:
        case None:
            yield FieldViolation("prompt", "one of text, token_ids and chat must be set")
        case TextPrompt(text=""):
            yield FieldViolation("text", "must not be empty")
        case TokenPrompt(token_ids=()):
            yield FieldViolation("token_ids", "must not be empty")
        case TokenPrompt(token_ids=token_ids):
            yield from _token_violation("token_ids.ids", token_ids, vocabulary_size)
        case ChatPrompt() as chat:
            yield from _chat_violations(chat)


def _chat_violations(chat: ChatPrompt) -> Violations:
    if not chat.messages:
        yield FieldViolation("chat.messages", "must hold at least one message")
    elif chat.continue_final_message and chat.messages[-1].role != "assistant":
        role = shown(chat.messages[-1].role)
        yield FieldViolation(
            "chat.continue_final_message", f"the last message must be the assistant's, its role is {role}"
        )
    for index, message in enumerate(chat.messages):
        path = f"chat.messages[{index}]"
        if not message.role:
            yield FieldViolation(f"{path}.role", "must not be empty")
        # A tool may well have nothing to say.
        if not message.content and not message.tool_calls and not message.has_image and message.role != "tool":
            yield FieldViolation(f"{path}.content", "may be empty only beside tool_calls")
    yield from _tool_violations(chat)
    for name in chat.template_arguments:
        if name in RESERVED_ARGUMENTS:
            yield FieldViolation(f"chat.template_arguments.{name}", "is set by the prompt itself")


def _tool_violations(chat: ChatPrompt) -> Violations:
    if len(chat.tools) > _TOOL_COUNT:
        yield _too_many("chat.tools", _TOOL_COUNT, chat.tools)
    names: set[str] = set()
    for index, tool in enumerate(chat.tools):
        path = f"chat.tools[{index}]"
        if not 1 <= len(tool.name) <= _TOOL_NAME_CHARACTERS:
            yield FieldViolation(
                f"{path}.name", f"must have 1 to {_TOOL_NAME_CHARACTERS} characters, is {shown(tool.name)}"
            )
        elif tool.name in names:
            yield FieldViolation(f"{path}.name", f"must be another for each tool, {shown(tool.name)} was given before")
        names.add(tool.name)
        if tool.parameters.get("type", "object") != "object":
            kind = shown(tool.parameters["type"])
            yield FieldViolation(f"{path}.parameters", f"must be the schema of an object, its type is {kind}")
    named = chat.tool_choice is ToolChoiceMode.NAMED
    if chat.tool_choice is ToolChoiceMode.REQUIRED and not chat.tools:
        yield FieldViolation("chat.tool_choice", "asks for a call and needs at least one tool")
    elif named and chat.tool_choice_name not in names:
        yield FieldViolation("chat.tool_choice.name", f"must name one of the tools, is {shown(chat.tool_choice_name)}")
    elif chat.tool_choice_name and not named:
        yield FieldViolation("chat.tool_choice.name", "must be empty unless the mode is NAMED")


def _sampling_violations(sampling: SamplingOptions, vocabulary_size: int) -> Violations:
    for name, allowed in SAMPLING_RANGES.items():
        value: float | None = getattr(sampling, name)
        if value is not None and value not in allowed:
            yield out_of_range(f"sampling.{name}", allowed, value)
    if sampling.top_k is not None and not 0 <= sampling.top_k <= vocabulary_size:
        yield out_of_range("sampling.top_k", f"[0, {vocabulary_size}]", sampling.top_k)
    if sampling.seed is not None and not 0 <= sampling.seed < SEED_END:
        yield out_of_range("sampling.seed", "[0, 2^64)", sampling.seed)
    if sampling.length_penalty is not None:
        yield from _at_least("sampling.length_penalty.start_index", sampling.length_penalty.start_index, 0)
        if sampling.length_penalty.decay_factor not in LENGTH_DECAY_RANGE:
            decay_factor = sampling.length_penalty.decay_factor
            yield out_of_range("sampling.length_penalty.decay_factor", LENGTH_DECAY_RANGE, decay_factor)
    yield from _token_list_violations(sampling, vocabulary_size)


def _token_list_violations(sampling: SamplingOptions, vocabulary_size: int) -> Violations:
    if len(sampling.logit_bias) > _LOGIT_BIAS_COUNT:
        yield _too_many("sampling.logit_bias", _LOGIT_BIAS_COUNT, sampling.logit_bias)
    for token_id, bias in sampling.logit_bias.items():
        field = f"sampling.logit_bias[{token_id}]"
        if not 0 <= token_id < vocabulary_size:
            yield FieldViolation(field, f"the key must be in [0, {vocabulary_size})")
        if bias not in LOGIT_BIAS_RANGE:
            yield out_of_range(field, LOGIT_BIAS_RANGE, bias)
    if len(sampling.banned_words) > _BANNED_WORD_COUNT:
        yield _too_many("sampling.banned_words", _BANNED_WORD_COUNT, sampling.banned_words)
    for index, word in enumerate(sampling.banned_words):
        yield from _text_violation(f"sampling.banned_words[{index}]", word, _BANNED_WORD_SIZE_BYTES)


def _stopping_violations(stopping: StoppingOptions, limits: RequestLimits, card: ModelCard) -> Violations:
    yield from _at_least("stopping.max_new_token_count", stopping.max_new_token_count, 1)
    yield from _at_least("stopping.min_new_token_count", stopping.min_new_token_count, 0)
    least = stopping.min_new_token_count
    most = stopping.max_new_token_count or card.default_max_new_token_count
    if least is not None and most is not None and least > most:
        yield FieldViolation(
            "stopping.min_new_token_count", f"must not be more than max_new_token_count, {most}, is {least}"
        )
    if len(stopping.stop_sequences) > limits.stop_sequence_count:
        yield _too_many("stopping.stop_sequences", limits.stop_sequence_count, stopping.stop_sequences)
    for index, sequence in enumerate(stopping.stop_sequences):
        yield from _text_violation(f"stopping.stop_sequences[{index}]", sequence, limits.stop_sequence_size_bytes)
    if len(stopping.stop_token_ids) > limits.stop_token_count:
        yield _too_many("stopping.stop_token_ids", limits.stop_token_count, stopping.stop_token_ids)
    yield from _token_violation("stopping.stop_token_ids", stopping.stop_token_ids, card.vocabulary_size)
    time_limit_s = stopping.time_limit_s
    if time_limit_s is not None and not (0 < time_limit_s < math.inf):
        yield FieldViolation("stopping.time_limit", f"must be positive, is {shown(time_limit_s)} s")


def _output_violations(output: OutputOptions, limits: RequestLimits) -> Violations:
    count = output.top_logprob_count
    if count is None:
        return
    if not 0 <= count <= limits.top_logprob_count:
        yield out_of_range("output.top_logprob_count", f"[0, {limits.top_logprob_count}]", count)
    if count > 0 and not output.token_logprobs:
        yield FieldViolation("output.top_logprob_count", f"needs token_logprobs when it is positive, is {count}")


def _constraint_violations(request: GenerationRequest) -> Violations:
    chat = request.prompt
    calls = isinstance(chat, ChatPrompt) and chat.tool_choice in (ToolChoiceMode.REQUIRED, ToolChoiceMode.NAMED)
    if request.constraint is not None:
        yield from find_constraint_violations(request.constraint)
        if calls:
            yield FieldViolation("constraint", "must not be set beside a chat.tool_choice that asks for a call")
    if request.stopping.ignore_end_of_sequence and (calls or request.constraint is not None):
        holder = "chat.tool_choice" if calls else "constraint"
        yield FieldViolation(
            "stopping.ignore_end_of_sequence", f"must not be set beside {holder}, which says where a completion ends"
        )


def _common_violations(request: GenerationRequest | EmbeddingRequest) -> Violations:
    if request.request_id and not _is_request_id(request.request_id):
        yield FieldViolation(
            "request_id",
            f"must be 1 to {_REQUEST_ID_CHARACTERS} visible ASCII characters, is {shown(request.request_id)}",
        )
    if request.priority is not None and request.priority not in _PRIORITY_RANGE:
        yield out_of_range("priority", _PRIORITY_RANGE, request.priority)
    yield from _size_violation("cache_salt", request.cache_salt, _CACHE_SALT_SIZE_BYTES)


def _completion_violations(request: GenerationRequest, limits: RequestLimits) -> Violations:
    limit, count = limits.completion_count, request.completion_count
    if count is not None and not 1 <= count <= limit:
        yield out_of_range("completion_count", f"[1, {limit}]", count)
        return
    least = count or 1
    if request.best_of is not None and not least <= request.best_of <= limit:
        yield out_of_range("best_of", f"[{least}, {limit}], from completion_count to the limit", request.best_of)
    elif (request.best_of or least) > least and request.output.processed_logprobs:
        yield FieldViolation(
            "output.processed_logprobs", "must not be set beside best_of, which compares unprocessed ones"
        )


def _is_request_id(text: str) -> bool:
    return len(text) <= _REQUEST_ID_CHARACTERS and all("!" <= character <= "~" for character in text)


def _token_violation(field: str, token_ids: Sequence[int], vocabulary_size: int) -> Violations:
    """Yields the first id outside of the vocabulary: a prompt of another model would have thousands."""
    if token_ids and (min(token_ids) < 0 or max(token_ids) >= vocabulary_size):
        for index, token_id in enumerate(token_ids):
            if not 0 <= token_id < vocabulary_size:
                yield out_of_range(f"{field}[{index}]", f"[0, {vocabulary_size})", token_id)
                return


def _text_violation(field: str, text: str, size_limit_bytes: int) -> Violations:
    if not text:
        yield FieldViolation(field, "must not be empty")
    yield from _size_violation(field, text, size_limit_bytes)


def _size_violation(field: str, text: str, size_limit_bytes: int) -> Violations:
    size_bytes = len(text.encode())
    if size_bytes > size_limit_bytes:
        yield FieldViolation(field, f"must have at most {size_limit_bytes} bytes, has {size_bytes}")


def _at_least(field: str, value: int | None, least: int) -> Violations:
    if value is not None and value < least:
        yield FieldViolation(field, f"must be at least {least}, is {value}")


def _too_many(field: str, limit: int, values: Sequence[object] | dict[int, float]) -> FieldViolation:
    return FieldViolation(field, f"must have at most {limit} entries, has {len(values)}")
