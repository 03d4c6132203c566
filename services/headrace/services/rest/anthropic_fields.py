"""The body of Anthropic's `/v1/messages`, and the conversation that it stands for."""

import base64
import json
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from pydantic import Field

from headrace.client.chat import Image, Message, NamedTool, Tool, ToolCall, ToolChoice
from headrace.client.constraint import JsonSchema
from headrace.client.options import ChatOptions
from headrace.contract.errors import InvalidRequest
from headrace.services.rest.openai_fields import Body, JsonMapping, model_name
from headrace.services.rest.openai_prompts import Entries

FIELD_NAMES = {
    "chat": "messages",
    "chat.template_arguments": "thinking",
    "chat.tools": "tools",
    "chat.tools[].parameters_json": "tools[].input_schema",
    "chat.tools[].parameters": "tools[].input_schema",
    "chat.tool_choice": "tool_choice",
    "chat.parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "constraint": "output_config.format",
    "stopping.max_new_token_count": "max_tokens",
    "stopping.stop_sequences": "stop_sequences",
    "truncate_prompt_token_count": "",
}
"""What Anthropic calls the fields of `headrace.v1` that have another name there, or none."""


class CachedBlock(Body):
    """A block that may mark the end of what should be cached. Prefixes are cached here without marks."""

    cache_control: JsonMapping | None = None


class TextBlock(CachedBlock):
    """A text."""

    type: Literal["text"]
    text: str
    citations: None = None


class Base64Source(Body):
    """An image in the body."""

    type: Literal["base64"]
    media_type: str
    data: str


class UrlSource(Body):
    """An image elsewhere."""

    type: Literal["url"]
    url: str


class ImageBlock(CachedBlock):
    """An image."""

    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource, Field(discriminator="type")]


class ThinkingBlock(Body):
    """What the model thought in an earlier turn."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class ToolUseBlock(CachedBlock):
    """A call of a tool that the model made in an earlier turn."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: JsonMapping
    caller: JsonMapping | None = None


class ToolResultBlock(CachedBlock):
    """What a tool returned."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | Entries[Annotated[TextBlock | ImageBlock, Field(discriminator="type")]] = ""
    is_error: bool | None = None
    """Not told to the model, whose templates have no place for it: say it in the content."""


ContentBlock = Annotated[
    TextBlock | ImageBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")
]


class AnthropicMessage(Body):
    """A turn."""

    role: Literal["user", "assistant"]
    content: str | Entries[ContentBlock]


class AnthropicTool(CachedBlock):
    """A function that the model may call."""

    name: str
    description: str | None = None
    input_schema: JsonMapping
    """JSON Schema of the arguments."""
    type: Literal["custom"] | None = None
    strict: bool | None = None


class AnthropicToolChoice(Body):
    """How free the model is to call a tool."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    """Of the tool to call, with the type `tool`."""
    disable_parallel_tool_use: bool | None = None


class Thinking(Body):
    """Whether the model thinks first: the template's `enable_thinking`."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: str | None = None


class OutputFormat(Body):
    """The language of the answer."""

    type: Literal["json_schema"]
    schema_: JsonMapping = Field(alias="schema")


class OutputConfig(Body):
    """How to answer."""

    effort: str | None = None
    """Given to the chat template as `reasoning_effort`."""
    format: OutputFormat | None = None


class PromptBody(Body):
    """What a request to `/v1/messages` and one to count its tokens have in common."""

    model: str
    """Name of a served model; empty means the only one."""
    messages: Entries[AnthropicMessage] = Field(min_length=1)
    system: str | Entries[TextBlock] | None = None
    tools: Entries[AnthropicTool] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: JsonMapping | None = None

    IGNORED = frozenset({"cache_control"})

    def ignored_within(self) -> Iterable[str]:
        """Returns what has no effect within blocks, each name once."""
        # The body's own `cache_control` is listed already.
        return [name for name in dict.fromkeys(self._ignored_in_blocks()) if getattr(self, name, None) is None]

    def conversation(self) -> tuple[list[Message], list[str]]:
        """Returns the messages for the router, and where each of them is in the body.

        Raises:
            InvalidRequest: a block has no place in its turn.
        """
        messages: list[Message] = []
        paths: list[str] = []
        if self.system:
            parts = self.system if isinstance(self.system, str) else _parts(self.system, "system")
            messages.append(Message("system", parts))
            paths.append("system")
        for index, message in enumerate(self.messages):
            path = f"messages[{index}]"
            for turn in _turns(message, path):
                messages.append(turn)
                paths.append(path)
        return messages, paths

    def template_options(self) -> ChatOptions:
        """Returns how the conversation is rendered.

        Raises:
            InvalidRequest: two fields contradict each other.
        """
        arguments: dict[str, object] = {}
        if self.thinking is not None:
            arguments["enable_thinking"] = self.thinking.type != "disabled"
        if self.output_config is not None and self.output_config.effort is not None:
            arguments["reasoning_effort"] = self.output_config.effort
        last = self.messages[-1]
        options: ChatOptions = {
            "model": model_name(self.model),
            "template_arguments": arguments or None,
            # Anthropic's way to put words into the model's mouth: the last turn is its own.
            "continue_final_message": last.role == "assistant" or None,
        }
        if self.tools:
            options["tools"] = [
                Tool(name=tool.name, description=tool.description or "", parameters=tool.input_schema)
                for tool in self.tools
            ]
        if self.tool_choice is not None:
            options["tool_choice"] = _tool_choice(self.tool_choice)
            if self.tool_choice.disable_parallel_tool_use is not None:
                options["parallel_tool_calls"] = not self.tool_choice.disable_parallel_tool_use
        return options

    def _ignored_in_blocks(self) -> Iterator[str]:
        is_free = self.tool_choice is None or self.tool_choice.type in ("auto", "none")
        # A call that nobody asked for is held to no schema.
        if is_free and any(tool.strict for tool in self.tools or ()):
            yield "tools.strict"
        if self.thinking is not None:
            if self.thinking.budget_tokens is not None:
                yield "thinking.budget_tokens"
            if self.thinking.display is not None:
                yield "thinking.display"
        for block in self._blocks():
            if isinstance(block, CachedBlock) and block.cache_control is not None:
                yield "cache_control"
            if isinstance(block, ToolResultBlock) and block.is_error:
                yield "is_error"
            if isinstance(block, ThinkingBlock) and block.signature:
                yield "signature"
            if isinstance(block, ToolUseBlock) and block.caller is not None:
                yield "caller"

    def _blocks(self) -> Iterator[Body]:
        yield from self.tools or ()
        if not isinstance(self.system, str):
            yield from self.system or ()
        for message in self.messages:
            for block in message.content if not isinstance(message.content, str) else ():
                yield block
                if isinstance(block, ToolResultBlock) and not isinstance(block.content, str):
                    yield from block.content


class MessagesBody(PromptBody):
    """A request for the next message of a conversation."""

    max_tokens: int
    """Upper bound on generated tokens."""
    stop_sequences: Entries[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    """Softmax temperature in [0, 2]; 0 is greedy."""
    top_p: float | None = None
    top_k: int | None = None
    metadata: JsonMapping | None = None
    service_tier: str | None = None
    inference_geo: str | None = None

    IGNORED = PromptBody.IGNORED | {"metadata", "service_tier", "inference_geo"}

    def options(self, request_id: str) -> ChatOptions:
        """Returns what the body asks for.

        Raises:
            InvalidRequest: two fields contradict each other.
        """
        form = self.output_config.format if self.output_config else None
        options: ChatOptions = {
            "request_id": request_id,
            "max_new_token_count": self.max_tokens,
            "stop_sequences": self.stop_sequences,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "constraint": None if form is None else JsonSchema(json.dumps(form.schema_)),
        }
        return {**self.template_options(), **options}


def _turns(message: AnthropicMessage, path: str) -> Iterator[Message]:
    """Yields the messages of a turn: a tool's result is a message of its own for templates."""
    if isinstance(message.content, str):
        yield Message(message.role, message.content)
        return
    if message.role == "assistant":
        yield _assistant_turn(message.content, path)
        return
    said: list[str | Image] = []
    for index, block in enumerate(message.content):
        where = f"{path}.content[{index}]"
        match block:
            case TextBlock():
                said.append(block.text)
            case ImageBlock():
                said.append(_image(block.source, f"{where}.source"))
            case ToolResultBlock():
                if said:
                    yield Message("user", said)
                    said = []
                content = block.content if isinstance(block.content, str) else _parts(block.content, f"{where}.content")
                yield Message("tool", content, tool_call_id=block.tool_use_id)
            case _:
                raise InvalidRequest.of(f"{where}.type", f"{block.type!r} has no place in a turn of the user")
    if said or not message.content:
        yield Message("user", said)


def _assistant_turn(blocks: list[ContentBlock], path: str) -> Message:
    texts: list[str] = []
    thoughts: list[str] = []
    tool_calls: list[ToolCall] = []
    for index, block in enumerate(blocks):
        match block:
            case TextBlock():
                texts.append(block.text)
            case ThinkingBlock():
                thoughts.append(block.thinking)
            case ToolUseBlock():
                tool_calls.append(ToolCall(id=block.id, name=block.name, arguments_json=json.dumps(block.input)))
            case _:
                raise InvalidRequest.of(
                    f"{path}.content[{index}].type", f"{block.type!r} has no place in a turn of the assistant"
                )
    return Message("assistant", "".join(texts), tool_calls=tool_calls, reasoning="".join(thoughts))


def _parts(blocks: Iterable[TextBlock | ImageBlock], path: str) -> tuple[str | Image, ...]:
    return tuple(
        block.text if isinstance(block, TextBlock) else _image(block.source, f"{path}[{index}].source")
        for index, block in enumerate(blocks)
    )


def _image(source: Base64Source | UrlSource, path: str) -> Image:
    if isinstance(source, UrlSource):
        return Image(url=source.url)
    try:
        return Image(data=base64.b64decode(source.data, validate=True))
    except ValueError as error:
        raise InvalidRequest.of(f"{path}.data", f"holds no valid base64: {error}") from error


def _tool_choice(choice: AnthropicToolChoice) -> ToolChoice:
    if (choice.type == "tool") != (choice.name is not None):
        raise InvalidRequest.of("tool_choice.name", "belongs to the type 'tool', which needs it")
    if choice.name is not None:
        return NamedTool(choice.name)
    return "required" if choice.type == "any" else "none" if choice.type == "none" else "auto"
