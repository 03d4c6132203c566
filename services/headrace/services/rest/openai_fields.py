"""The fields that OpenAI's chat, completions and responses have in common, and vLLM's beside them."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from headrace.client.constraint import Choices, Constraint, JsonObject, JsonSchema, LarkGrammar, Regex
from headrace.client.options import GenerateOptions
from headrace.contract.errors import InvalidRequest
from headrace.services.rest.openai_prompts import Entries

FIELD_NAMES = {
    "text": "prompt",
    "token_ids": "prompt",
    "chat": "messages",
    "chat.messages[].tool_calls[].name": "messages[].tool_calls[].function.name",
    "chat.messages[].tool_calls[].arguments_json": "messages[].tool_calls[].function.arguments",
    "chat.tools[].name": "tools[].function.name",
    "chat.tools[].description": "tools[].function.description",
    "chat.tools[].parameters_json": "tools[].function.parameters",
    "chat.tools[].parameters": "tools[].function.parameters",
    "chat.tool_choice.name": "tool_choice.function.name",
    "chat.template": "chat_template",
    "chat.template_arguments": "chat_template_kwargs",
    "completion_count": "n",
    "constraint": "response_format",
    "output.token_logprobs": "logprobs",
    "output.top_logprob_count": "top_logprobs",
    "output.include_special_tokens": "skip_special_tokens",
    "sampling.banned_words": "bad_words",
    "stopping.max_new_token_count": "max_tokens",
    "stopping.min_new_token_count": "min_tokens",
    "stopping.stop_sequences": "stop",
    "stopping.ignore_end_of_sequence": "ignore_eos",
    "stopping.include_stop_sequence": "include_stop_str_in_output",
    "truncate_prompt_token_count": "truncate_prompt_tokens",
    "inputs": "input",
    "inputs[].text": "input[]",
    "inputs[].token_ids": "input[]",
    "inputs[].token_ids.ids[]": "input[][]",
    "dimension_count": "dimensions",
}
"""What OpenAI and vLLM call the fields of `headrace.v1` that have another name there."""

_PLACEHOLDERS = frozenset({"tgi", "dummy"})
"""What TGI's users, and Hugging Face's client, say for whatever is served."""

_TOKEN_ID = re.compile("0|[1-9][0-9]{0,9}")

Seed = Annotated[int, Field(ge=0, le=2**64 - 1)]
JsonMapping = dict[str, Any]


class Body(BaseModel):
    """A body: a field that it does not have is refused, and a value is never converted."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        populate_by_name=True,
    )

    IGNORED: ClassVar[frozenset[str]] = frozenset()
    """Fields that are taken and have no effect; the answer names them in a header."""

    def ignored(self) -> str:
        """Returns the fields that were given and have no effect, as the header lists them."""
        given = (name for name in type(self).model_fields if name in self.IGNORED and name in self.model_fields_set)
        return ", ".join([*(name for name in given if getattr(self, name) is not None), *self.ignored_within()])

    def ignored_within(self) -> Iterable[str]:
        """Returns the paths of what has no effect within fields that have one."""
        return ()


class JsonSchemaFormat(Body):
    """A schema with its name."""

    name: str = ""
    description: str | None = None
    schema_: JsonMapping | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """The language of the answer, as OpenAI writes it, or with TGI's `value`."""

    type: Literal["text", "json_object", "json_schema", "json", "regex"]
    json_schema: JsonSchemaFormat | None = None
    value: JsonMapping | str | None = None


class StructuredOutputs(Body):
    """The language of the answer, as vLLM writes it."""

    json_: JsonMapping | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: Entries[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class StreamOptions(Body):
    """What a stream carries beside the text."""

    include_usage: bool = False
    """Ends the stream with a chunk that counts tokens."""
    continuous_usage_stats: Literal[False] = False
    include_obfuscation: bool | None = None
    """Never done here."""


class GenerationBody(Body):
    """Sampling, stopping and constraints of all of OpenAI's endpoints. Unset fields take the model's defaults."""

    model: str = ""
    """Name of a served model; empty, `tgi` or `dummy` means the only one."""
    temperature: float | None = None
    """Softmax temperature in [0, 2]; 0 is greedy."""
    top_p: float | None = None
    stop: str | Entries[str] | None = None
    seed: Seed | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    """By token id, in [-100, 100]."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    top_k: int | None = None
    """Keeps only the likeliest tokens; 0 or -1 keeps all."""
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    stop_token_ids: Entries[int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    bad_words: Entries[str] | None = None
    truncate_prompt_tokens: int | None = None
    add_special_tokens: bool | None = None
    guided_json: JsonMapping | str | None = None
    guided_regex: str | None = None
    guided_choice: Entries[str] | None = None
    guided_grammar: str | None = None
    structured_outputs: StructuredOutputs | None = None
    priority: int | None = None
    """In [-10, 10]; more urgent requests leave the queue first."""
    cache_salt: str | None = None
    adapter: str | None = None
    """Name of a LoRA adapter."""

    user: str | None = None
    metadata: JsonMapping | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: JsonMapping | None = None
    guided_decoding_backend: str | None = None
    spaces_between_special_tokens: bool | None = None

    IGNORED = frozenset(
        {
            "user",
            "metadata",
            "store",
            "service_tier",
            "safety_identifier",
            "prompt_cache_key",
            "prompt_cache_retention",
            "prompt_cache_options",
            "guided_decoding_backend",
            "spaces_between_special_tokens",
        }
    )

    def sampling_options(self, request_id: str) -> GenerateOptions:
        """Returns what the body asks for, as the client's keywords.

        Raises:
            InvalidRequest: two fields contradict each other, or one cannot be converted.
        """
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest.of("stream_options", "has a place beside stream alone")
        include_special = None if self.skip_special_tokens is None else not self.skip_special_tokens
        return {
            "model": model_name(self.model),
            "request_id": request_id,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0 if self.top_k == -1 else self.top_k,
            "min_p": self.min_p,
            "typical_p": self.typical_p,
            "seed": self.seed,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": _logit_bias(self.logit_bias),
            "banned_words": self.bad_words,
            "min_new_token_count": self.min_tokens,
            "stop_sequences": self.stop,
            "stop_token_ids": self.stop_token_ids,
            "ignore_end_of_sequence": self.ignore_eos,
            "include_stop_sequence": self.include_stop_str_in_output,
            "include_special_tokens": include_special,
            "truncate_prompt_token_count": self.truncate_prompt_tokens,
            "add_special_tokens": self.add_special_tokens,
            "constraint": self._constraint(),
            "priority": self.priority,
            "cache_salt": self.cache_salt,
            "adapter": self.adapter,
        }

    def ignored_within(self) -> Iterator[str]:
        """Yields what streams of this endpoint do not have."""
        if self.stream_options is not None and self.stream_options.include_obfuscation:
            yield "stream_options.include_obfuscation"

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def format_constraint(self) -> tuple[str, Constraint | None]:
        """Returns the field of this endpoint that formats the answer, and what it stands for.

        Raises:
            InvalidRequest: a part is missing.
        """
        return "response_format", None

    def aliases(self) -> dict[str, str]:
        """Returns the names of fields of `headrace.v1` where the body had a choice between several for them."""
        given = self._constraints()
        return {"constraint": given[0][0]} if given else {}

    def _constraint(self) -> Constraint | None:
        given = self._constraints()
        if len(given) > 1:
            raise InvalidRequest.of(given[1][0], f"cannot be given beside {given[0][0]}")
        return given[0][1] if given else None

    def _constraints(self) -> list[tuple[str, Constraint]]:
        outputs = self.structured_outputs or StructuredOutputs()
        found = [
            self.format_constraint(),
            ("guided_json", _schema(self.guided_json)),
            ("guided_regex", _regex(self.guided_regex)),
            ("guided_choice", _choices(self.guided_choice)),
            ("guided_grammar", _grammar(self.guided_grammar)),
            ("structured_outputs.json", _schema(outputs.json_)),
            ("structured_outputs.regex", _regex(outputs.regex)),
            ("structured_outputs.choice", _choices(outputs.choice)),
            ("structured_outputs.grammar", _grammar(outputs.grammar)),
            ("structured_outputs.json_object", JsonObject() if outputs.json_object else None),
        ]
        return [(name, constraint) for name, constraint in found if constraint is not None]


class SamplingBody(GenerationBody):
    """What chat and completions take alike."""

    n: int | None = None
    """Number of completions."""
    max_tokens: int | None = None
    response_format: ResponseFormat | None = None

    def sampling_options(self, request_id: str) -> GenerateOptions:
        """Returns what the body asks for; as `GenerationBody`."""
        options: GenerateOptions = {"completion_count": self.n, "max_new_token_count": self.max_tokens}
        return {**super().sampling_options(request_id), **options}

    def ignored_within(self) -> Iterator[str]:
        """Yields what is told of a schema and the model does not see."""
        yield from super().ignored_within()
        form = self.response_format.json_schema if self.response_format else None
        if form is not None and form.description:
            yield "response_format.json_schema.description"

    def format_constraint(self) -> tuple[str, Constraint | None]:
        """Returns what `response_format` stands for."""
        return "response_format", None if self.response_format is None else constraint_of(self.response_format)


def model_name(name: str) -> str:
    """Returns the model's name for the router."""
    return "" if name in _PLACEHOLDERS else name


def constraint_of(form: ResponseFormat) -> Constraint | None:
    """Returns the constraint that a format stands for.

    Raises:
        InvalidRequest: a part is missing, or has no place in this one.
    """
    if form.json_schema is not None and form.type != "json_schema":
        raise InvalidRequest.of("response_format.json_schema", f"has no place in the type {form.type!r}")
    if form.value is not None and (form.type == "text" or form.json_schema is not None):
        raise InvalidRequest.of("response_format.value", "has no place in this format")
    if form.type == "text":
        return None
    if form.type == "regex":
        if not isinstance(form.value, str):
            raise InvalidRequest.of("response_format.value", "must be a regular expression")
        return Regex(form.value)
    if form.type == "json_schema" and form.json_schema is not None:
        if form.json_schema.schema_ is None:
            raise InvalidRequest.of("response_format.json_schema.schema", "is missing")
        return JsonSchema(form.json_schema.schema_)
    value = form.value
    if form.type == "json_schema" and isinstance(value, dict) and "schema" in value:
        value = value["schema"]
    if value is None:
        if form.type == "json_object":
            return JsonObject()
        raise InvalidRequest.of(
            f"response_format.{'json_schema' if form.type == 'json_schema' else 'value'}", "is missing"
        )
    return JsonSchema(value)


def _schema(schema: JsonMapping | str | None) -> Constraint | None:
    return None if schema is None else JsonSchema(schema if isinstance(schema, str) else json.dumps(schema))


def _regex(pattern: str | None) -> Constraint | None:
    return None if pattern is None else Regex(pattern)


def _choices(texts: list[str] | None) -> Constraint | None:
    return None if texts is None else Choices(texts)


def _grammar(text: str | None) -> Constraint | None:
    return None if text is None else LarkGrammar(text)


def _logit_bias(by_id: dict[str, float] | None) -> dict[int, float] | None:
    if by_id is None:
        return None
    for key in by_id:
        # One way to write each id, or two keys could mean the same.
        if _TOKEN_ID.fullmatch(key) is None:
            raise InvalidRequest.of(f"logit_bias[{key}]", "must be the id of a token")
    return {int(key): bias for key, bias in by_id.items()}
