"""The fields of Text Generation Inference's own protocol, and what they ask of the router."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from headrace.client.constraint import Constraint, JsonSchema, Regex, Watermark
from headrace.client.options import GenerateOptions
from headrace.contract.errors import InvalidRequest
from headrace.services.rest.openai_fields import Body, JsonMapping, Seed
from headrace.services.rest.openai_prompts import Entries

FIELD_NAMES = {
    "text": "inputs",
    "chat": "messages",
    "adapter": "adapter_id",
    "completion_count": "best_of",
    "best_of": "best_of",
    "constraint": "grammar",
    "output.top_logprob_count": "top_n_tokens",
    "output.token_logprobs": "details",
    "output.prompt_logprobs": "decoder_input_details",
    "stopping.max_new_token_count": "max_new_tokens",
    "stopping.stop_sequences": "stop",
    "truncate_prompt_token_count": "truncate",
}
"""What TGI calls the fields of `headrace.v1` that have another name there."""


class Grammar(Body):
    """The language of the text."""

    type: Literal["json", "json_object", "regex", "json_schema"]
    value: JsonMapping | str
    """A schema, a regular expression, or for `json_schema` a mapping with `schema`."""

    def constraint(self) -> Constraint:
        """Returns the constraint that it stands for.

        Raises:
            InvalidRequest: the value does not fit the type.
        """
        if self.type == "regex":
            if not isinstance(self.value, str):
                raise InvalidRequest.of("grammar.value", "must be a regular expression")
            return Regex(self.value)
        if self.type == "json_schema" and isinstance(self.value, dict) and "schema" in self.value:
            return JsonSchema(self.value["schema"])
        return JsonSchema(self.value)


class Parameters(Body):
    """How to generate. Sampling is greedy unless `do_sample`, or one of the fields that need it, asks for more."""

    best_of: int | None = None
    temperature: float | None = Field(default=None, gt=0)
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int | None = Field(default=None, gt=0)
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool | None = None
    max_new_tokens: int | None = None
    return_full_text: bool | None = None
    stop: Entries[str] | None = None
    stop_sequences: Entries[str] | None = None
    """The same as `stop`, as older clients write it."""
    truncate: int | None = None
    watermark: bool | None = None
    details: bool | None = None
    decoder_input_details: bool | None = None
    seed: Seed | None = None
    top_n_tokens: int | None = None
    grammar: Grammar | None = None
    adapter_id: str | None = None

    @property
    def has_details(self) -> bool:
        """Whether an answer that is whole comes with its details."""
        return bool(self.details or self.decoder_input_details)

    def aliases(self) -> dict[str, str]:
        """Returns the names of fields of `headrace.v1` where the body had a choice."""
        return {"stopping.stop_sequences": "stop_sequences"} if self.stop_sequences else {}

    def options(self, request_id: str, *, with_logprobs: bool) -> GenerateOptions:
        """Returns what the parameters ask for. What is left out has TGI's default, not the model's.

        Raises:
            InvalidRequest: two fields contradict each other.
        """
        if self.stop and self.stop_sequences:
            raise InvalidRequest.of("stop_sequences", "cannot be given beside stop")
        is_sampled = self.do_sample or any(
            value is not None for value in (self.temperature, self.top_k, self.top_p, self.typical_p)
        )
        options: GenerateOptions = {
            "request_id": request_id,
            "temperature": (1.0 if self.temperature is None else self.temperature) if is_sampled else 0.0,
            "top_k": self.top_k or 0,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "typical_p": self.typical_p,
            "repetition_penalty": self.repetition_penalty,
            "frequency_penalty": self.frequency_penalty,
            "seed": self.seed,
            "completion_count": self.best_of,
            "best_of": self.best_of,
            "max_new_token_count": self.max_new_tokens,
            "stop_sequences": self.stop or self.stop_sequences,
            "include_stop_sequence": True if self.stop or self.stop_sequences else None,
            "truncate_prompt_token_count": self.truncate,
            "watermark": Watermark() if self.watermark else None,
            "prompt_logprobs": self.decoder_input_details or None,
            "constraint": self.grammar.constraint() if self.grammar else None,
            "adapter": self.adapter_id,
        }
        if with_logprobs or self.top_n_tokens:
            options |= {"token_logprobs": True, "top_logprob_count": self.top_n_tokens}
        return options


class GenerateBody(Body):
    """A text and how to continue it."""

    inputs: str
    parameters: Parameters = Parameters()
    stream: bool | None = None
    """Read on `/` and `/invocations` alone."""
    options: dict[str, Any] | None = None
    """Switches of Hugging Face's hosted service."""

    IGNORED = frozenset({"options"})

    def ignored_within(self) -> Iterator[str]:
        """Yields what asks for a part of the details where there are none. A stream has them."""
        if self.parameters.top_n_tokens and not (self.stream or self.parameters.has_details):
            yield "parameters.top_n_tokens"


class PathBody(GenerateBody):
    """A text for an endpoint whose path says whether it streams."""

    IGNORED = GenerateBody.IGNORED | {"stream"}


class StreamBody(PathBody):
    """A text for an endpoint that streams."""

    def ignored_within(self) -> Iterator[str]:
        """Yields nothing: all that can be asked for is in a stream."""
        yield from ()


class TokenizeBody(PathBody):
    """A text to tokenize; `parameters` is taken, since the clients of TGI send it."""

    add_special_tokens: bool | None = None
    IGNORED = PathBody.IGNORED | {"parameters"}

    def ignored_within(self) -> Iterator[str]:
        """Yields nothing: all parameters are ignored together."""
        yield from ()
