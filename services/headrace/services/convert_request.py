"""Converts what clients ask in `headrace.v1` to the contract: presence is kept, ranges are not checked.

Only what the contract's types cannot express, such as a oneof that is not set,
is refused here. Every other check belongs to the router.
"""

import json

from google.protobuf import struct_pb2

from headrace.contract.errors import InvalidRequest
from headrace.contract.generation import (
    ChatMessage,
    ChatPrompt,
    Constraint,
    ConstraintKind,
    GenerationRequest,
    JsonValue,
    OutputOptions,
    Prompt,
    TextPrompt,
    TokenPrompt,
    Tool,
    ToolCall,
    ToolChoiceMode,
    WatermarkOptions,
)
from headrace.contract.sampling import LengthPenalty, SamplingOptions, StoppingOptions
from headrace.v1 import chat_pb2, generate_service_pb2, sampling_pb2

_TOOL_CHOICE_MODES = {
    chat_pb2.TOOL_CHOICE_MODE_UNSPECIFIED: ToolChoiceMode.AUTO,
    chat_pb2.TOOL_CHOICE_MODE_AUTO: ToolChoiceMode.AUTO,
    chat_pb2.TOOL_CHOICE_MODE_NONE: ToolChoiceMode.NONE,
    chat_pb2.TOOL_CHOICE_MODE_REQUIRED: ToolChoiceMode.REQUIRED,
    chat_pb2.TOOL_CHOICE_MODE_NAMED: ToolChoiceMode.NAMED,
}

_EXACT_INTEGER_LIMIT = 2**53
"""From here on a double stands for several integers."""


def request_from_proto(
    request: generate_service_pb2.GenerateRequest, *, deadline_s: float | None, tenant: str = "", trace_parent: str = ""
) -> GenerationRequest:
    """Returns what a client asked for.

    `deadline_s` is the moment on the process's clock when the caller stops waiting, `tenant` for whom it
    calls, `trace_parent` the call's span.

    Raises:
        InvalidRequest: a oneof or an enum has no value that this version knows.
    """
    return GenerationRequest(
        prompt=_generate_prompt(request),
        model=request.model,
        tenant=tenant,
        request_id=request.request_id,
        sampling=sampling_from_proto(request.sampling),
        stopping=_stopping_from_proto(request.stopping),
        output=_output_from_proto(request.output),
        constraint=_constraint_from_proto(request.constraint) if request.HasField("constraint") else None,
        adapter=request.adapter,
        priority=request.priority if request.HasField("priority") else None,
        cache_salt=request.cache_salt,
        completion_count=request.completion_count if request.HasField("completion_count") else None,
        best_of=request.best_of if request.HasField("best_of") else None,
        truncate_prompt_token_count=(
            request.truncate_prompt_token_count if request.HasField("truncate_prompt_token_count") else None
        ),
        add_special_tokens=request.add_special_tokens if request.HasField("add_special_tokens") else None,
        watermark=_watermark_from_proto(request.watermark) if request.HasField("watermark") else None,
        speculation=request.speculation if request.HasField("speculation") else None,
        deadline_s=deadline_s,
        trace_parent=trace_parent,
    )


def tokenize_prompt_from_proto(request: generate_service_pb2.TokenizeRequest) -> Prompt | None:
    """Returns the prompt to tokenize; None if there is none.

    Raises:
        InvalidRequest: as `request_from_proto`.
    """
    match request.WhichOneof("prompt"):
        case "text":
            return TextPrompt(request.text)
        case "chat":
            return _chat_from_proto(request.chat)
        case _:
            return None


def sampling_from_proto(message: sampling_pb2.SamplingParams) -> SamplingOptions:
    """Returns the sampling options in a message; what is unset is None."""
    has = message.HasField
    penalty = message.length_penalty
    return SamplingOptions(
        temperature=message.temperature if has("temperature") else None,
        top_k=message.top_k if has("top_k") else None,
        top_p=message.top_p if has("top_p") else None,
        min_p=message.min_p if has("min_p") else None,
        typical_p=message.typical_p if has("typical_p") else None,
        seed=message.seed if has("seed") else None,
        repetition_penalty=message.repetition_penalty if has("repetition_penalty") else None,
        frequency_penalty=message.frequency_penalty if has("frequency_penalty") else None,
        presence_penalty=message.presence_penalty if has("presence_penalty") else None,
        logit_bias=dict(message.logit_bias),
        banned_words=tuple(message.banned_words),
        length_penalty=(
            LengthPenalty(start_index=penalty.start_index, decay_factor=penalty.decay_factor)
            if has("length_penalty")
            else None
        ),
    )


def sampling_to_proto(options: SamplingOptions) -> sampling_pb2.SamplingParams:
    """Returns the message of sampling options; what is None stays unset."""
    penalty = options.length_penalty
    return sampling_pb2.SamplingParams(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        typical_p=options.typical_p,
        seed=options.seed,
        repetition_penalty=options.repetition_penalty,
        frequency_penalty=options.frequency_penalty,
        presence_penalty=options.presence_penalty,
        logit_bias=options.logit_bias,
        banned_words=options.banned_words,
        length_penalty=(
            sampling_pb2.LengthPenalty(start_index=penalty.start_index, decay_factor=penalty.decay_factor)
            if penalty is not None
            else None
        ),
    )


def _generate_prompt(request: generate_service_pb2.GenerateRequest) -> Prompt | None:
    match request.WhichOneof("prompt"):
        case "text":
            return TextPrompt(request.text)
        case "token_ids":
            return TokenPrompt(tuple(request.token_ids.ids))
        case "chat":
            return _chat_from_proto(request.chat)
        case _:
            return None


def _stopping_from_proto(message: generate_service_pb2.StoppingRules) -> StoppingOptions:
    has = message.HasField
    limit = message.time_limit
    return StoppingOptions(
        max_new_token_count=message.max_new_token_count if has("max_new_token_count") else None,
        min_new_token_count=message.min_new_token_count if has("min_new_token_count") else None,
        stop_sequences=tuple(message.stop_sequences),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_end_of_sequence=message.ignore_end_of_sequence if has("ignore_end_of_sequence") else None,
        include_stop_sequence=message.include_stop_sequence if has("include_stop_sequence") else None,
        time_limit_s=limit.seconds + limit.nanos / 1e9 if has("time_limit") else None,
    )


def _output_from_proto(message: generate_service_pb2.OutputOptions) -> OutputOptions:
    has = message.HasField
    return OutputOptions(
        token_logprobs=message.token_logprobs if has("token_logprobs") else None,
        top_logprob_count=message.top_logprob_count if has("top_logprob_count") else None,
        prompt_logprobs=message.prompt_logprobs if has("prompt_logprobs") else None,
        include_special_tokens=message.include_special_tokens if has("include_special_tokens") else None,
        processed_logprobs=message.processed_logprobs if has("processed_logprobs") else None,
    )


def _watermark_from_proto(message: generate_service_pb2.Watermark) -> WatermarkOptions:
    return WatermarkOptions(
        enabled=message.enabled,
        key=message.key,
        gamma=message.gamma if message.HasField("gamma") else None,
        delta=message.delta if message.HasField("delta") else None,
    )


def _constraint_from_proto(message: generate_service_pb2.Constraint) -> Constraint:
    match message.WhichOneof("kind"):
        case "json_object" if message.json_object:
            return Constraint(ConstraintKind.JSON_OBJECT, "")
        case "json_object":
            raise InvalidRequest.of("constraint.json_object", "must be true when set")
        case "json_schema":
            return Constraint(ConstraintKind.JSON_SCHEMA, message.json_schema)
        case "regex":
            return Constraint(ConstraintKind.REGEX, message.regex)
        case "choices":
            texts = json.dumps(list(message.choices.texts), ensure_ascii=False)
            return Constraint(ConstraintKind.CHOICES, texts)
        case "lark_grammar":
            return Constraint(ConstraintKind.LARK, message.lark_grammar)
        case "ebnf_grammar":
            return Constraint(ConstraintKind.EBNF, message.ebnf_grammar)
        case _:
            raise InvalidRequest.of("constraint", "is given without a kind; set exactly one")


def _chat_from_proto(message: chat_pb2.ChatPrompt) -> ChatPrompt:
    choice = message.tool_choice if message.HasField("tool_choice") else None
    return ChatPrompt(
        messages=tuple(_turn_from_proto(turn, f"chat.messages[{n}]") for n, turn in enumerate(message.messages)),
        tools=tuple(_tool_from_proto(tool, f"chat.tools[{n}]") for n, tool in enumerate(message.tools)),
        tool_choice=None if choice is None else _tool_choice_mode(choice),
        tool_choice_name="" if choice is None else choice.name,
        template_arguments=_object_from_struct(message.template_arguments),
        continue_final_message=message.continue_final_message,
        template=message.template if message.HasField("template") else None,
        parallel_tool_calls=message.parallel_tool_calls if message.HasField("parallel_tool_calls") else True,
        raw_output=message.raw_output,
    )


def _tool_from_proto(tool: chat_pb2.Tool, path: str) -> Tool:
    parameters = _object_from_struct(tool.parameters)
    if tool.parameters_json:
        if tool.HasField("parameters"):
            raise InvalidRequest.of(f"{path}.parameters_json", "must not be set beside parameters")
        parameters = _object_from_json(tool.parameters_json, f"{path}.parameters_json")
    return Tool(name=tool.name, description=tool.description, parameters=parameters)


def _tool_choice_mode(choice: chat_pb2.ToolChoice) -> ToolChoiceMode:
    mode = _TOOL_CHOICE_MODES.get(choice.mode)
    if mode is None:
        raise InvalidRequest.of("chat.tool_choice.mode", f"{choice.mode} is not a mode of this version")
    return mode


def _turn_from_proto(turn: chat_pb2.ChatMessage, path: str) -> ChatMessage:
    texts: list[str] = []
    has_image = False
    for position, part in enumerate(turn.content):
        match part.WhichOneof("part"):
            case "text":
                texts.append(part.text)
            case "image":
                has_image = True
            case _:
                raise InvalidRequest.of(f"{path}.content[{position}]", "is empty; set `text` or `image`")
    return ChatMessage(
        role=turn.role,
        content="".join(texts),
        has_image=has_image,
        tool_calls=tuple(
            ToolCall(id=call.id, name=call.name, arguments_json=call.arguments_json) for call in turn.tool_calls
        ),
        tool_call_id=turn.tool_call_id,
        name=turn.name,
        reasoning=turn.reasoning,
    )


def _object_from_json(text: str, path: str) -> dict[str, JsonValue]:
    try:
        value: JsonValue = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest.of(path, f"must be JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequest.of(path, "must be a JSON object")
    return value


def _refuse(constant: str) -> JsonValue:
    raise ValueError(f"{constant} is no JSON")


def _object_from_struct(struct: struct_pb2.Struct) -> dict[str, JsonValue]:
    # A map has another order in each process, and a prompt must be the same in all.
    return {key: _json_value(value) for key, value in sorted(struct.fields.items())}


def _json_value(value: struct_pb2.Value) -> JsonValue:
    match value.WhichOneof("kind"):
        case "bool_value":
            return value.bool_value
        case "string_value":
            return value.string_value
        case "number_value":
            # Struct has doubles alone; a template that prints `"maximum": 5` must not see 5.0.
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) < _EXACT_INTEGER_LIMIT else number
        case "list_value":
            return [_json_value(item) for item in value.list_value.values]
        case "struct_value":
            return _object_from_struct(value.struct_value)
        case _:
            return None
