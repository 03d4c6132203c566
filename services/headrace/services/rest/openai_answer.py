"""What OpenAI's endpoints have in common in their answers: usage, reasons to end, log-probabilities and errors."""

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import orjson
from starlette.responses import Response
from typing_extensions import TypedDict

from headrace.client.results import CompletionEnd, FinishReason, TokenLogprob, Usage
from headrace.contract.errors import FeatureUnsupported, HeadraceError, RequestAborted
from headrace.services.rest.errors import advice_of, message_of, violations_of, words_of
from headrace.services.rest.openai_fields import FIELD_NAMES
from headrace.v1 import generate_service_pb2 as pb

DONE = b"data: [DONE]\n\n"

SYSTEM_FINGERPRINT = f"headrace-{version('headrace')}"
"""What answered; some clients insist on one."""

Json = dict[str, Any]


class TokenDetails(TypedDict):
    """Tokens by where they came from."""

    cached_tokens: int


class OpenAiUsage(TypedDict):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: TokenDetails


class ErrorDetail(TypedDict):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """The body of every error."""

    error: ErrorDetail


def json_response(content: object, headers: Mapping[str, str], status: int = 200) -> Response:
    """Returns JSON."""
    return Response(orjson.dumps(content), status, headers, "application/json")


def error_body(error: HeadraceError, names: Mapping[str, str] = FIELD_NAMES) -> ErrorBody:
    """Returns an error in OpenAI's shape. `names` are the endpoint's, for fields of `headrace.v1`."""
    fields = [violation.field for violation in violations_of(error, names) if violation.field]
    return {
        "error": {
            "message": message_of(error, names),
            "type": words_of(error).openai_type,
            "param": fields[0] if fields else None,
            "code": "unsupported" if isinstance(error, FeatureUnsupported) else error.reason.lower(),
        }
    }


def error_response(
    error: HeadraceError, headers: Mapping[str, str], names: Mapping[str, str] = FIELD_NAMES
) -> Response:
    """Returns an error as a whole response; as `error_body`."""
    return json_response(error_body(error, names), {**headers, **advice_of(error)}, words_of(error).status)


def error_event(error: HeadraceError) -> bytes:
    """Returns an error that came after the status was sent; clients raise it."""
    return b"data: " + orjson.dumps(error_body(error)) + b"\n\n"


def usage_of(usage: Usage | pb.Usage) -> OpenAiUsage:
    """Returns token counts."""
    prompt, generated = usage.prompt_token_count, usage.generated_token_count
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": usage.cached_token_count},
    }


def sum_usages(usages: Iterable[OpenAiUsage]) -> OpenAiUsage:
    """Returns the token counts of several prompts together."""
    total: OpenAiUsage = {
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "total_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    for usage in usages:
        total["prompt_tokens"] += usage["prompt_tokens"]
        total["completion_tokens"] += usage["completion_tokens"]
        total["total_tokens"] += usage["total_tokens"]
        total["prompt_tokens_details"]["cached_tokens"] += usage["prompt_tokens_details"]["cached_tokens"]
    return total


_CUT_SHORT = {FinishReason.LENGTH, FinishReason.CONTEXT_LIMIT, FinishReason.TIME_LIMIT}
_CUT_SHORT_NUMBERS = {pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_CONTEXT_LIMIT, pb.FINISH_REASON_TIME_LIMIT}


def finish_reason(end: CompletionEnd, *, has_tool_calls: bool = False) -> str:
    """Returns why a completion ended.

    Raises:
        RequestAborted: someone ended it; OpenAI has no word for half an answer.
    """
    if end.reason is FinishReason.CANCELLED:
        raise aborted()
    if end.reason in _CUT_SHORT:
        return "length"
    return "tool_calls" if has_tool_calls else "stop"


def streamed_finish_reason(end: pb.CompletionEnd, *, has_tool_calls: bool = False) -> str:
    """Returns the same of a stream.

    Raises:
        RequestAborted: as `finish_reason`.
    """
    if end.reason == pb.FINISH_REASON_CANCELLED:
        raise aborted()
    if end.reason in _CUT_SHORT_NUMBERS:
        return "length"
    return "tool_calls" if has_tool_calls else "stop"


def aborted() -> RequestAborted:
    """Returns the error of a completion that someone ended."""
    return RequestAborted("the request was aborted before its completion had ended")


def chat_logprobs(logprobs: Sequence[TokenLogprob] | Sequence[pb.TokenLogprob]) -> Json:
    """Returns log-probabilities as the chat endpoint has them."""
    return {"content": [_entry(logprob, with_top=True) for logprob in logprobs], "refusal": None}


def _entry(logprob: TokenLogprob | pb.TokenLogprob, *, with_top: bool) -> Json:
    # A piece of a character is replaced in the text, and its bytes are not known here.
    is_whole = "\ufffd" not in logprob.text
    entry: Json = {
        "token": logprob.text,
        "logprob": logprob.logprob,
        "bytes": list(logprob.text.encode()) if is_whole else None,
    }
    if with_top:
        entry["top_logprobs"] = [_entry(rival, with_top=False) for rival in logprob.top]
    return entry


def text_logprobs(
    logprobs: Sequence[TokenLogprob] | Sequence[pb.TokenLogprob], top_count: int, offset: int
) -> tuple[Json, int]:
    """Returns log-probabilities as the completions endpoint has them, and the offset of the next token's text."""
    offsets: list[int] = []
    for logprob in logprobs:
        offsets.append(offset)
        offset += len(logprob.text)
    tops = [{rival.text: rival.logprob for rival in logprob.top[:top_count]} or None for logprob in logprobs]
    known = [None if _is_first(logprob) else logprob.logprob for logprob in logprobs]
    return {
        "tokens": [logprob.text for logprob in logprobs],
        "token_logprobs": known,
        "top_logprobs": tops,
        "text_offset": offsets,
    }, offset


def _is_first(logprob: TokenLogprob | pb.TokenLogprob) -> bool:
    """Whether nothing came before a token, so that it has no probability."""
    return isinstance(logprob, pb.TokenLogprob) and not logprob.HasField("logprob")
