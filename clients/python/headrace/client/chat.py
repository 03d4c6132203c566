"""Conversations: typed, or as the plain mappings that OpenAI's API takes."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

from headrace.contract.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image in a message: either `data` or `url`."""

    data: bytes | None = None
    """An encoded image: PNG, JPEG, WebP or GIF."""
    url: str | None = None
    """An https address, fetched by the server if it allows the host."""

    def __post_init__(self) -> None:
        if (self.data is None) == (self.url is None):
            raise ValueError("an image needs either data or url")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call of a tool that the assistant made."""

    id: str
    """Identifies the call within the conversation."""
    name: str
    """Name of the tool."""
    arguments_json: str
    """The arguments as the text of a JSON object."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments by name. Whether they fit the tool's schema is not checked.

        Raises:
            ValueError: `arguments_json` is no JSON object. The server never sends such a call.
        """
        arguments = json.loads(self.arguments_json)
        if not isinstance(arguments, dict):
            raise ValueError(f"the arguments of {self.name} are no JSON object: {self.arguments_json[:200]}")
        return arguments

    def result(self, content: str) -> "Message":
        """Returns the message that answers this call."""
        return Message("tool", content, name=self.name, tool_call_id=self.id)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation: `Message("user", "Why is the sky blue?")`."""

    role: str
    """`system`, `user`, `assistant`, `tool`, or what else the model's template knows."""
    content: str | Sequence[str | Image] = ""
    """What is said: a text, or texts and images in order."""
    _: KW_ONLY
    name: str = ""
    """Name of the speaker, for templates that show it."""
    tool_calls: Sequence[ToolCall] = ()
    """Calls that the assistant made in this turn."""
    tool_call_id: str = ""
    """The call that a `tool` message answers."""
    reasoning: str = ""
    """The assistant's reasoning in this turn, for templates that keep it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may call."""

    name: str
    """1 to 64 characters."""
    description: str = ""
    """What the function does, for the model."""
    parameters: Mapping[str, object] | None = None
    """JSON Schema of the arguments."""


@dataclass(frozen=True, slots=True)
class NamedTool:
    """The choice of one tool that the model has to call."""

    name: str


MessageLike = Message | Mapping[str, object]
"""A message, or `{"role": "user", "content": "..."}` with the keys of OpenAI's API."""
ToolLike = Tool | Mapping[str, object]
"""A tool, or `{"type": "function", "function": {...}}`."""
ToolChoice = Literal["auto", "none", "required"] | NamedTool | Mapping[str, object]
"""How free the model is to call a tool; a mapping is `{"type": "function", "function": {"name": ...}}`."""


def read_message(message: MessageLike, path: str) -> Message:
    """Returns a message typed.

    Raises:
        InvalidRequest: a key is missing, unknown or of another type; the field starts with `path`.
    """
    if isinstance(message, Message):
        return message
    fields = _Fields(message, path)
    # Servers of OpenAI's protocol spell it either way, some both ways.
    reasonings = (fields.text("reasoning"), fields.text("reasoning_content"))
    typed = Message(
        fields.text("role", required=True),
        _read_content(fields.take("content"), f"{path}.content"),
        name=fields.text("name"),
        tool_calls=tuple(
            _read_tool_call(call, f"{path}.tool_calls[{index}]")
            for index, call in enumerate(fields.items("tool_calls"))
        ),
        tool_call_id=fields.text("tool_call_id"),
        reasoning=reasonings[0] or reasonings[1],
    )
    fields.refuse_others()
    return typed


def read_tool(tool: ToolLike, path: str) -> Tool:
    """Returns a tool typed.

    Raises:
        InvalidRequest: as `read_message`.
    """
    if isinstance(tool, Tool):
        return tool
    function = _read_function(_Fields(tool, path))
    typed = Tool(
        name=function.text("name", required=True),
        description=function.text("description"),
        parameters=function.mapping("parameters"),
    )
    function.refuse_others()
    return typed


def read_tool_choice(choice: ToolChoice, path: str) -> Literal["auto", "none", "required"] | NamedTool:
    """Returns a choice typed.

    Raises:
        InvalidRequest: as `read_message`.
    """
    if isinstance(choice, NamedTool):
        return choice
    if isinstance(choice, Mapping):
        function = _read_function(_Fields(choice, path))
        typed = NamedTool(function.text("name", required=True))
        function.refuse_others()
        return typed
    if choice not in ("auto", "none", "required"):
        raise InvalidRequest.of(path, f"must be 'auto', 'none', 'required' or a NamedTool, not {choice!r}")
    return choice


def _read_content(content: object, path: str) -> str | tuple[str | Image, ...]:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise InvalidRequest.of(path, f"must be a text or a list of parts, not {type(content).__name__}")
    return tuple(_read_part(part, f"{path}[{index}]") for index, part in enumerate(content))


def _read_part(part: object, path: str) -> str | Image:
    if isinstance(part, str | Image):
        return part
    fields = _Fields(part, path)
    kind = fields.text("type", required=True)
    if kind == "text":
        text = fields.text("text")
        fields.refuse_others()
        return text
    if kind != "image_url":
        raise InvalidRequest.of(f"{path}.type", f"must be 'text' or 'image_url', not {kind!r}")
    image = _Fields(fields.take("image_url"), f"{path}.image_url")
    fields.refuse_others()
    url = image.text("url", required=True)
    if (detail := image.text("detail")) not in ("", "auto"):
        raise InvalidRequest.of(f"{image.path}.detail", f"must be 'auto', not {detail!r}")
    image.refuse_others()
    return _read_image(url, f"{path}.image_url.url")


def _read_image(url: str, path: str) -> Image:
    if not url.startswith("data:"):
        return Image(url=url)
    header, separator, payload = url.partition(",")
    if not separator or not header.endswith(";base64"):
        raise InvalidRequest.of(path, "must be https or data:image/...;base64,...")
    try:
        return Image(data=base64.b64decode(payload, validate=True))
    except ValueError as error:
        raise InvalidRequest.of(path, f"holds no valid base64: {error}") from error


def _read_tool_call(call: object, path: str) -> ToolCall:
    if isinstance(call, ToolCall):
        return call
    fields = _Fields(call, path)
    # Whoever puts a streamed call together keeps the place that it had; a list says it anyway.
    fields.take("index")
    identifier = fields.text("id", required=True)
    function = _read_function(fields)
    typed = ToolCall(
        id=identifier,
        name=function.text("name", required=True),
        arguments_json=function.text("arguments", required=True),
    )
    function.refuse_others()
    return typed


def _read_function(fields: "_Fields") -> "_Fields":
    kind = fields.text("type") or "function"
    if kind != "function":
        raise InvalidRequest.of(f"{fields.path}.type", f"must be 'function', not {kind!r}")
    function = _Fields(fields.take("function"), f"{fields.path}.function")
    fields.refuse_others()
    return function


_EMPTY_IN_DUMPS = frozenset(
    {"annotations", "audio", "function_call", "images", "refusal", "strict", "provider_specific_fields"}
)
"""Keys of OpenAI's types, and of servers of its protocol, that say nothing while they are empty."""


class _Fields:
    """A mapping that is read key by key; what nobody read is refused at the end, since nothing is dropped silently."""

    def __init__(self, mapping: object, path: str) -> None:
        if not isinstance(mapping, Mapping):
            raise InvalidRequest.of(path, f"must be a mapping, not {type(mapping).__name__}")
        self.path = path
        # Dumps of OpenAI's own types spell out every field that is not set.
        self._rest = {str(key): value for key, value in mapping.items() if value is not None}

    def take(self, key: str) -> object:
        return self._rest.pop(key, None)

    def text(self, key: str, *, required: bool = False) -> str:
        value = self.take(key)
        if value is None and not required:
            return ""
        if not isinstance(value, str):
            found = "nothing" if value is None else type(value).__name__
            raise InvalidRequest.of(f"{self.path}.{key}", f"must be a text, not {found}")
        return value

    def items(self, key: str) -> Sequence[object]:
        value = self.take(key)
        if value is None:
            return ()
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise InvalidRequest.of(f"{self.path}.{key}", f"must be a list, not {type(value).__name__}")
        return value

    def mapping(self, key: str) -> Mapping[str, object] | None:
        value = self.take(key)
        if value is not None and not isinstance(value, Mapping):
            raise InvalidRequest.of(f"{self.path}.{key}", f"must be a mapping, not {type(value).__name__}")
        return value

    def refuse_others(self) -> None:
        for key, value in self._rest.items():
            if key not in _EMPTY_IN_DUMPS or value not in ([], {}, "", False):
                raise InvalidRequest.of(f"{self.path}.{key}", "has no place in headrace.v1")
