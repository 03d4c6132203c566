"""From the keywords of a call to the messages of `headrace.v1`."""

import json
from collections.abc import Iterable, Mapping, MutableSequence, Sequence
from typing import Literal

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message as ProtoMessage

from headrace.client.chat import (
    Image,
    Message,
    MessageLike,
    NamedTool,
    Tool,
    ToolChoice,
    read_message,
    read_tool,
    read_tool_choice,
)
from headrace.client.constraint import constraint_to_proto, watermark_to_proto
from headrace.client.options import (
    ChatOptions,
    EmbedOptions,
    GenerateOptions,
    TemplateOptions,
    TokenizeChatOptions,
    TokenizeOptions,
    check_names,
)
from headrace.contract.errors import InvalidRequest
from headrace.contract.pooling import Pooling
from headrace.contract.sampling import LengthPenalty
from headrace.v1 import chat_pb2 as chat_pb
from headrace.v1 import embedding_service_pb2 as embedding_pb
from headrace.v1 import generate_service_pb2 as generate_pb
from headrace.v1 import sampling_pb2 as sampling_pb

Prompt = str | Sequence[int]
"""A text, or token ids of the model's vocabulary, used as they are."""

_REQUEST_FIELDS = (
    "model",
    "request_id",
    "adapter",
    "priority",
    "cache_salt",
    "completion_count",
    "best_of",
    "truncate_prompt_token_count",
    "add_special_tokens",
    "speculation",
)

PoolingLike = Pooling | Literal["mean", "last"]
"""How hidden states become one vector: a `Pooling`, or its name."""

_EMBED_FIELDS = (
    "model",
    "request_id",
    "normalize",
    "dimension_count",
    "truncate_token_count",
    "add_special_tokens",
    "adapter",
    "priority",
    "cache_salt",
)

_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
"""What integers a field of a type holds."""

_ARGUMENT_DEPTH_LIMIT = 24
"""protobuf reads messages that nest 100 deep, and a list or mapping within another takes up to four of them."""

_POOLINGS = {Pooling.MEAN: embedding_pb.POOLING_MEAN, Pooling.LAST: embedding_pb.POOLING_LAST}

_TOOL_CHOICE_MODES = {
    "auto": chat_pb.TOOL_CHOICE_MODE_AUTO,
    "none": chat_pb.TOOL_CHOICE_MODE_NONE,
    "required": chat_pb.TOOL_CHOICE_MODE_REQUIRED,
}


def generate_request(prompt: Prompt, options: GenerateOptions) -> generate_pb.GenerateRequest:
    """Returns the request for a text or for token ids.

    Raises:
        InvalidRequest: a value does not fit its field; limits are the server's to check.
        TypeError: an option is unknown.
    """
    check_names(options, GenerateOptions)
    request = _request(options)
    if isinstance(prompt, str):
        _fill(request, "", {"text": prompt})
    else:
        token_ids = generate_pb.TokenIds()
        _fill(token_ids, "token_ids.", {"ids": prompt})
        request.token_ids.CopyFrom(token_ids)
    return request


def chat_request(messages: Sequence[MessageLike], options: ChatOptions) -> generate_pb.GenerateRequest:
    """Returns the request for a conversation.

    Raises:
        InvalidRequest, TypeError: as `generate_request`.
    """
    check_names(options, ChatOptions)
    request = _request(options)
    request.chat.CopyFrom(_chat_prompt(messages, options))
    return request


def embed_request(
    inputs: str | Sequence[Prompt], pooling: PoolingLike, options: EmbedOptions
) -> embedding_pb.EmbedRequest:
    """Returns the request for the vectors of texts or token ids.

    Raises:
        InvalidRequest, TypeError: as `generate_request`.
    """
    check_names(options, EmbedOptions)
    request = embedding_pb.EmbedRequest()
    _fill(request, "", {name: options.get(name) for name in _EMBED_FIELDS})
    if pooling not in _POOLINGS:
        raise InvalidRequest.of("pooling", f"must be one of {', '.join(_POOLINGS)}, not {pooling!r}")
    request.pooling = _POOLINGS[Pooling(pooling)]
    # A text is a sequence of texts too; nobody means its characters.
    for index, entry in enumerate((inputs,) if isinstance(inputs, str) else inputs):
        target = request.inputs.add()
        if isinstance(entry, str):
            _fill(target, f"inputs[{index}].", {"text": entry})
        else:
            _fill(target.token_ids, f"inputs[{index}].token_ids.", {"ids": entry})
            target.token_ids.SetInParent()
    return request


def tokenize_request(text: str, options: TokenizeOptions) -> generate_pb.TokenizeRequest:
    """Returns the request for the token ids of a text.

    Raises:
        InvalidRequest, TypeError: as `generate_request`.
    """
    check_names(options, TokenizeOptions)
    request = generate_pb.TokenizeRequest()
    names = ("model", "add_special_tokens", "include_offsets")
    _fill(request, "", {"text": text} | {name: options.get(name) for name in names})
    return request


def tokenize_chat_request(messages: Sequence[MessageLike], options: TokenizeChatOptions) -> generate_pb.TokenizeRequest:
    """Returns the request for the token ids of a conversation.

    Raises:
        InvalidRequest, TypeError: as `generate_request`.
    """
    check_names(options, TokenizeChatOptions)
    request = generate_pb.TokenizeRequest(chat=_chat_prompt(messages, options))
    _fill(request, "", {name: options.get(name) for name in ("model", "include_offsets")})
    return request


def detokenize_request(
    token_ids: Sequence[int], model: str, *, include_special_tokens: bool | None
) -> generate_pb.DetokenizeRequest:
    """Returns the request for the text of token ids.

    Raises:
        InvalidRequest: a value does not fit its field.
    """
    request = generate_pb.DetokenizeRequest()
    _fill(request, "", {"model": model, "token_ids": token_ids, "include_special_tokens": include_special_tokens})
    return request


def duration(field: str, seconds: float) -> Duration:
    """Returns seconds as a message.

    Raises:
        InvalidRequest: `seconds` is no finite number that the message can hold.
    """
    message = Duration()
    try:
        message.FromNanoseconds(round(seconds * 1e9))
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest.of(field, f"must be a number of seconds, not {seconds!r}") from error
    return message


def _request(options: GenerateOptions) -> generate_pb.GenerateRequest:
    request = generate_pb.GenerateRequest()
    _fill(request, "", {name: options.get(name) for name in _REQUEST_FIELDS})
    penalty = options.get("length_penalty")
    sampling = {"length_penalty": None if penalty is None else _length_penalty(penalty)}
    _fill_group(request.sampling, "sampling.", options, sampling)
    time_limit_s = options.get("time_limit_s")
    stopping = {"time_limit": None if time_limit_s is None else duration("stopping.time_limit", time_limit_s)}
    _fill_group(request.stopping, "stopping.", options, stopping)
    _fill_group(request.output, "output.", options, {})
    constraint = options.get("constraint")
    if constraint is not None:
        request.constraint.CopyFrom(constraint_to_proto(constraint))
    watermark = options.get("watermark")
    if watermark is not None:
        request.watermark.CopyFrom(watermark_to_proto(watermark))
    return request


def _length_penalty(penalty: LengthPenalty) -> sampling_pb.LengthPenalty:
    message = sampling_pb.LengthPenalty()
    values = {"start_index": penalty.start_index, "decay_factor": penalty.decay_factor}
    _fill(message, "sampling.length_penalty.", values)
    return message


def _fill_group(
    group: ProtoMessage, path: str, options: GenerateOptions, messages: Mapping[str, ProtoMessage | None]
) -> None:
    """Sets the fields of `group` from the options of the same names; `messages` are those that are no plain values.

    Reading the names from the contract leaves no second list of them to maintain.
    """
    values: dict[str, object] = {field.name: options.get(field.name) for field in group.DESCRIPTOR.fields}
    values.update(messages)
    _fill(group, path, values)


def _fill(message: ProtoMessage, path: str, values: Mapping[str, object]) -> None:
    """Sets fields by name; None leaves a field unset. protobuf's own errors do not say which field they are about."""
    for name, value in values.items():
        if value is None:
            continue
        try:
            _set(message, name, value)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidRequest.of(
                f"{path}{name}", _explain(message.DESCRIPTOR.fields_by_name[name].cpp_type, error)
            ) from error


def _explain(kind: int, error: Exception) -> str:
    """Returns why a value does not fit a field: for a number its range, since protobuf names the number alone."""
    if "out of range" in str(error) and kind in _RANGES:
        least, most = _RANGES[kind]
        return f"must be in [{least}, {most}]"
    return str(error)


def _set(message: ProtoMessage, name: str, value: object) -> None:
    field = getattr(message, name)
    if isinstance(value, ProtoMessage):
        field.CopyFrom(value)
    elif isinstance(value, Mapping):
        field.update(value)
    elif not isinstance(field, MutableSequence):
        setattr(message, name, value)
    elif isinstance(value, str):
        # A text is a sequence of texts too; nobody means its characters.
        field.append(value)
    elif isinstance(value, Iterable):
        field.extend(value)
    else:
        raise TypeError("must be a list")


def _chat_prompt(messages: Sequence[MessageLike], options: TemplateOptions) -> chat_pb.ChatPrompt:
    prompt = chat_pb.ChatPrompt()
    for index, message in enumerate(messages):
        path = f"chat.messages[{index}]"
        _add_message(prompt.messages.add(), read_message(message, path), f"{path}.")
    for index, tool in enumerate(options.get("tools") or ()):
        path = f"chat.tools[{index}]"
        _add_tool(prompt.tools.add(), read_tool(tool, path), f"{path}.")
    choice = options.get("tool_choice")
    if choice is not None:
        prompt.tool_choice.CopyFrom(_tool_choice(choice))
    arguments = options.get("template_arguments")
    _check_depth(arguments, _ARGUMENT_DEPTH_LIMIT)
    names = ("continue_final_message", "template", "parallel_tool_calls", "raw_output")
    plain = {name: options.get(name) for name in names}
    _fill(prompt, "chat.", {"template_arguments": arguments, **plain})
    return prompt


def _check_depth(value: object, levels: int) -> None:
    if isinstance(value, Mapping):
        entries: Iterable[object] = value.values()
    elif isinstance(value, list | tuple):
        entries = value
    else:
        return
    if levels == 0:
        raise InvalidRequest.of("chat.template_arguments", f"must nest at most {_ARGUMENT_DEPTH_LIMIT} deep")
    for entry in entries:
        _check_depth(entry, levels - 1)


def _add_message(target: chat_pb.ChatMessage, message: Message, path: str) -> None:
    names = ("role", "name", "tool_call_id", "reasoning")
    _fill(target, path, {name: getattr(message, name) for name in names})
    parts = (message.content,) if isinstance(message.content, str) else message.content
    # An assistant that only called tools said nothing: no part, in place of an empty one.
    is_silent = bool(message.tool_calls) and parts == ("",)
    for index, part in enumerate(() if is_silent else parts):
        _add_part(target.content.add(), part, f"{path}content[{index}].")
    for index, call in enumerate(message.tool_calls):
        values = {"id": call.id, "name": call.name, "arguments_json": call.arguments_json}
        _fill(target.tool_calls.add(), f"{path}tool_calls[{index}].", values)


def _add_part(target: chat_pb.ContentPart, part: str | Image, path: str) -> None:
    if isinstance(part, Image):
        _fill(target.image, f"{path}image.", {"data": part.data, "url": part.url})
    else:
        _fill(target, path, {"text": part})


def _add_tool(target: chat_pb.Tool, tool: Tool, path: str) -> None:
    _fill(target, path, {"name": tool.name, "description": tool.description})
    if tool.parameters is not None:
        try:
            # As text, since a Struct would not keep the order, which the model sees.
            target.parameters_json = json.dumps(tool.parameters, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidRequest.of(f"{path}parameters", f"must be JSON values: {error}") from error


def _tool_choice(choice: ToolChoice) -> chat_pb.ToolChoice:
    typed = read_tool_choice(choice, "chat.tool_choice")
    if isinstance(typed, NamedTool):
        return chat_pb.ToolChoice(mode=chat_pb.TOOL_CHOICE_MODE_NAMED, name=typed.name)
    return chat_pb.ToolChoice(mode=_TOOL_CHOICE_MODES[typed])
