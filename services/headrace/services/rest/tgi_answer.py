"""The shapes of Text Generation Inference's answers, and its errors."""

from collections.abc import Collection, Mapping, Sequence

from starlette.responses import Response
from typing_extensions import TypedDict

from headrace.client.results import Completion, FinishReason, Generation, TokenLogprob
from headrace.contract.errors import HeadraceError
from headrace.services.rest.errors import advice_of, message_of, words_of
from headrace.services.rest.openai_answer import aborted, json_response
from headrace.services.rest.tgi_fields import FIELD_NAMES


class TgiError(TypedDict):
    """The body of every error."""

    error: str
    error_type: str


class PrefillToken(TypedDict):
    """A token of the prompt."""

    id: int
    text: str
    logprob: float | None


class Token(TypedDict):
    """A generated token."""

    id: int
    text: str
    logprob: float | None
    special: bool


class OtherSequence(TypedDict):
    """One of the other completions of `best_of`."""

    generated_text: str
    finish_reason: str
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]]


class Details(TypedDict):
    """What is known of a completion beside its text."""

    finish_reason: str
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]]
    best_of_sequences: list[OtherSequence] | None


class Generated(TypedDict):
    """A completion."""

    generated_text: str
    details: Details | None


_REASONS = {
    FinishReason.END_OF_SEQUENCE: "eos_token",
    FinishReason.STOP_TOKEN: "eos_token",
    FinishReason.STOP_SEQUENCE: "stop_sequence",
}


def error_body(error: HeadraceError, names: Mapping[str, str] = FIELD_NAMES) -> TgiError:
    """Returns an error in TGI's shape. `names` are those of the body, for fields of `headrace.v1`."""
    return {"error": message_of(error, names), "error_type": words_of(error).tgi_type}


def error_response(
    error: HeadraceError, headers: Mapping[str, str], names: Mapping[str, str] = FIELD_NAMES
) -> Response:
    """Returns an error as a whole response; as `error_body`."""
    return json_response(error_body(error, names), {**headers, **advice_of(error)}, words_of(error).tgi_status)


def finish_reason(reason: FinishReason) -> str:
    """Returns why a completion ended.

    Raises:
        RequestAborted: someone ended it; TGI has no word for half an answer.
    """
    if reason is FinishReason.CANCELLED:
        raise aborted()
    return _REASONS.get(reason, "length")


def details_of(generation: Generation, special_ids: Collection[int], prompt: str) -> Details:
    """Returns the details of the first completion, and the others within. `prompt` goes before every text."""
    first, *others = generation.completions
    prefill: list[PrefillToken] = [
        {"id": entry.token_id, "text": entry.text, "logprob": entry.logprob} for entry in generation.prompt_logprobs
    ]
    return {
        "finish_reason": finish_reason(first.end.reason),
        "generated_tokens": first.end.generated_token_count,
        "seed": first.end.seed,
        "prefill": prefill,
        "tokens": tokens_of(first.logprobs, special_ids),
        "top_tokens": _top_tokens(first, special_ids),
        "best_of_sequences": [
            {
                "generated_text": prompt + other.text,
                "finish_reason": finish_reason(other.end.reason),
                "generated_tokens": other.end.generated_token_count,
                "seed": other.end.seed,
                "prefill": prefill,
                "tokens": tokens_of(other.logprobs, special_ids),
                "top_tokens": _top_tokens(other, special_ids),
            }
            for other in others
        ]
        or None,
    }


def tokens_of(logprobs: Sequence[TokenLogprob], special_ids: Collection[int]) -> list[Token]:
    """Returns generated tokens."""
    return [
        {
            "id": entry.token_id,
            "text": entry.text,
            "logprob": entry.logprob,
            "special": entry.token_id in special_ids,
        }
        for entry in logprobs
    ]


def _top_tokens(completion: Completion, special_ids: Collection[int]) -> list[list[Token]]:
    return [tokens_of(entry.top, special_ids) for entry in completion.logprobs if entry.top]
