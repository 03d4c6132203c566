"""The body of OpenAI's `/v1/responses` in its stateless form, and the conversation that it stands for."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from headrace.client.chat import Message, MessageLike, NamedTool, Tool, ToolChoice
from headrace.client.constraint import Constraint, JsonObject, JsonSchema
from headrace.client.options import ChatOptions
from headrace.contract.errors import InvalidRequest
from headrace.services.rest import openai_fields
from headrace.services.rest.openai_fields import Body, GenerationBody, JsonMapping
from headrace.services.rest.openai_prompts import Entries

FIELD_NAMES = {path: name for path, name in openai_fields.FIELD_NAMES.items() if path != "text"} | {
    "chat": "input",
    "chat.template_arguments": "reasoning",
    "chat.tools": "tools",
    "chat.tools[].name": "tools[].name",
    "chat.tools[].description": "tools[].description",
    "chat.tools[].parameters_json": "tools[].parameters",
    "chat.tools[].parameters": "tools[].parameters",
    "chat.tool_choice": "tool_choice",
    "chat.tool_choice.name": "tool_choice.name",
    "constraint": "text.format",
    "stopping.max_new_token_count": "max_output_tokens",
}
"""What this endpoint calls the fields of `headrace.v1` that have another name there."""


class InputText(Body):
    """A text; as `output_text` one that the model wrote."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Entries[JsonMapping] | None = Field(default=None, max_length=0)
    logprobs: Entries[JsonMapping] | None = None


class InputImage(Body):
    """An image."""

    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto"] | None = None
    file_id: None = None


Part = Annotated[InputText | InputImage, Field(discriminator="type")]


class StoredItem(Body):
    """An item that a response may have held: what it was called and how it ended says nothing to the model."""

    id: str | None = None
    status: str | None = None


class MessageItem(StoredItem):
    """A turn."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Entries[Part]
    phase: str | None = None


class FunctionCallItem(StoredItem):
    """A call of a tool that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class FunctionOutputItem(StoredItem):
    """What a tool returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | Entries[Part]


class ReasoningText(Body):
    """A piece of reasoning."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(StoredItem):
    """What the model thought."""

    type: Literal["reasoning"]
    summary: Entries[ReasoningText] | None = None
    content: Entries[ReasoningText] | None = None
    encrypted_content: None = None


def _kind_of(item: object) -> object:
    # OpenAI's clients may leave out the type of a message.
    return item.get("type", "message") if isinstance(item, Mapping) else getattr(item, "type", None)


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind_of),
]


class FunctionTool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: JsonMapping | None = None
    """JSON Schema of the arguments."""
    strict: bool | None = None


class TextFormat(Body):
    """The language of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: JsonMapping | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextOptions(Body):
    """How to write."""

    format: TextFormat | None = None
    verbosity: str | None = None


class Reasoning(Body):
    """How to think."""

    effort: str | None = None
    """Given to the chat template as `reasoning_effort`."""
    summary: str | None = None
    generate_summary: str | None = None


class ResponsesBody(GenerationBody):
    """A request for the next items of a conversation. Nothing is kept: the whole conversation is in `input`."""

    input: str | Entries[InputItem]
    """A text of the user, or turns, calls of tools and their outputs in order."""
    instructions: str | None = None
    """Goes before the conversation, as a turn of the system."""
    max_output_tokens: int | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    tools: Entries[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | JsonMapping | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    previous_response_id: None = None
    conversation: None = None
    prompt: None = None
    include: Entries[Literal["reasoning.encrypted_content", "message.output_text.logprobs"]] | None = None
    max_tool_calls: int | None = None
    top_logprobs: int | None = None

    IGNORED = (GenerationBody.IGNORED - {"metadata"}) | {"max_tool_calls"}

    @property
    def wants_logprobs(self) -> bool:
        """Whether the text comes with the log-probabilities of its tokens."""
        return "message.output_text.logprobs" in (self.include or ())

    def ignored_within(self) -> Iterator[str]:
        """Yields what has no effect within other fields, each path once."""
        yield from super().ignored_within()
        if "reasoning.encrypted_content" in (self.include or ()):
            yield "include"
        if self.wants_usage:  # every response has it
            yield "stream_options.include_usage"
        if self.text is not None and self.text.verbosity is not None:
            yield "text.verbosity"
        if self.text is not None and self.text.format is not None and self.text.format.description:
            yield "text.format.description"
        if self.reasoning is not None and (self.reasoning.summary or self.reasoning.generate_summary):
            yield "reasoning.summary"
        # A call that nobody asked for is held to no schema.
        if self.tool_choice in (None, "auto", "none") and any(tool.strict for tool in self.tools or ()):
            yield "tools.strict"
        if self.parallel_tool_calls is not None and not self.tools:
            yield "parallel_tool_calls"
        if not isinstance(self.input, str):
            yield from dict.fromkeys(name for item in self.input for name in _ignored_of(item))

    def conversation_of(self) -> tuple[list[MessageLike], list[str]]:
        """Returns the messages for the router, and where each of them is in the body.

        Raises:
            InvalidRequest: there are none.
        """
        turns = _Turns()
        if self.instructions:
            turns.add(Message("system", self.instructions), "instructions")
        if isinstance(self.input, str):
            turns.add(Message("user", self.input), "input")
        else:
            for index, item in enumerate(self.input):
                turns.add_item(item, f"input[{index}]")
        if not turns.messages:
            raise InvalidRequest.of("input", "must not be empty")
        return turns.messages, turns.paths

    def options(self, request_id: str) -> ChatOptions:
        """Returns what the body asks for.

        Raises:
            InvalidRequest: two fields contradict each other.
        """
        if self.top_logprobs and not self.wants_logprobs:
            raise InvalidRequest.of("top_logprobs", "needs message.output_text.logprobs in include")
        arguments: dict[str, object] = {}
        if self.reasoning is not None and self.reasoning.effort is not None:
            arguments["reasoning_effort"] = self.reasoning.effort
        options: ChatOptions = {
            "max_new_token_count": self.max_output_tokens,
            "token_logprobs": self.wants_logprobs or None,
            "top_logprob_count": self.top_logprobs or None,
            "template_arguments": arguments or None,
            "parallel_tool_calls": self.parallel_tool_calls,
            "tool_choice": _tool_choice(self.tool_choice),
        }
        if self.tools:
            options["tools"] = [
                Tool(name=tool.name, description=tool.description or "", parameters=tool.parameters)
                for tool in self.tools
            ]
        return {**self.sampling_options(request_id), **options}

    def format_constraint(self) -> tuple[str, Constraint | None]:
        """Returns what `text.format` stands for."""
        form = self.text.format if self.text else None
        if form is not None and form.schema_ is not None and form.type != "json_schema":
            raise InvalidRequest.of("text.format.schema", f"has no place in the type {form.type!r}")
        if form is None or form.type == "text":
            return "text.format", None
        if form.type == "json_object":
            return "text.format", JsonObject()
        if form.schema_ is None:
            raise InvalidRequest.of("text.format.schema", "is missing")
        return "text.format", JsonSchema(form.schema_)


def _ignored_of(item: InputItem) -> Iterator[str]:
    """Yields what an item says of itself that the model does not see."""
    names = ("id", "status", "phase") if isinstance(item, MessageItem) else ("id", "status")
    yield from (f"input.{name}" for name in names if getattr(item, name) is not None)
    if isinstance(item, ReasoningItem) and item.content and item.summary:
        yield "input.summary"
    parts = item.content if isinstance(item, MessageItem) and not isinstance(item.content, str) else ()
    if any(isinstance(part, InputText) and part.logprobs for part in parts):
        yield "input.content.logprobs"


def _tool_choice(choice: Literal["none", "auto", "required"] | JsonMapping | None) -> ToolChoice | None:
    if not isinstance(choice, dict):
        return choice
    name = choice.get("name")
    if choice.keys() != {"type", "name"} or choice["type"] != "function" or not isinstance(name, str):
        raise InvalidRequest.of("tool_choice", "must be 'none', 'auto', 'required' or a function's type and name")
    return NamedTool(name)


@dataclass(slots=True)
class _Turns:
    """Collects messages. What the assistant thought, said and called one after the other is one turn of its own."""

    messages: list[MessageLike] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    _is_assistants: bool = False

    def add(self, message: MessageLike, path: str) -> None:
        self.messages.append(message)
        self.paths.append(path)
        self._is_assistants = False

    def add_item(self, item: InputItem, path: str) -> None:
        match item:
            case MessageItem(role="assistant"):
                # A text after the last one begins a turn; after reasoning it goes on with it.
                turn = self._assistant_turn(path, begins="content")
                turn["content"] = _text_of(item.content, path)
            case MessageItem():
                # Templates know the system alone.
                role = "system" if item.role == "developer" else item.role
                self.add({"role": role, "content": _parts(item.content)}, path)
            case FunctionCallItem():
                _check_arguments(item.arguments, f"{path}.arguments")
                call = {"id": item.call_id, "function": {"name": item.name, "arguments": item.arguments}}
                self._assistant_turn(path).setdefault("tool_calls", []).append(call)
            case FunctionOutputItem():
                self.add({"role": "tool", "content": _parts(item.output), "tool_call_id": item.call_id}, path)
            case ReasoningItem():
                pieces = item.content or item.summary or []
                turn = self._assistant_turn(path, begins="reasoning")
                turn["reasoning"] = "".join(piece.text for piece in pieces)

    def _assistant_turn(self, path: str, begins: str = "") -> dict[str, Any]:
        last = self.messages[-1] if self._is_assistants else None
        if not isinstance(last, dict) or begins in last:
            last = {"role": "assistant"}
            self.add(last, path)
            self._is_assistants = True
        return last


def _check_arguments(text: str, path: str) -> None:
    """Refuses here what the router would name by its place in a turn, which is not the item's."""
    try:
        arguments = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise InvalidRequest.of(path, "must be the text of a JSON object") from error
    if not isinstance(arguments, dict):
        raise InvalidRequest.of(path, "must be the text of a JSON object")


def _text_of(content: str | list[InputText | InputImage], path: str) -> str:
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for index, part in enumerate(content):
        if not isinstance(part, InputText):
            raise InvalidRequest.of(f"{path}.content[{index}].type", "the assistant's turns are texts")
        texts.append(part.text)
    return "".join(texts)


def _parts(content: str | Iterable[InputText | InputImage]) -> str | list[dict[str, object]]:
    if isinstance(content, str):
        return content
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, InputText)
        else {"type": "image_url", "image_url": {"url": part.image_url}}
        for part in content
    ]
