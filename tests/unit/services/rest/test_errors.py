"""Every error has words in every protocol, and clients can tell errors apart by status."""

from collections.abc import Iterator, Mapping

import pytest

import headrace.client.errors
from headrace.contract.errors import (
    FeatureUnsupported,
    FieldViolation,
    HeadraceError,
    InvalidRequest,
    QueueFull,
    ServerError,
    StartupError,
    Unauthenticated,
)
from headrace.services.rest import anthropic_answer, openai_answer, tgi_answer
from headrace.services.rest.anthropic_fields import FIELD_NAMES as ANTHROPIC
from headrace.services.rest.errors import TABLE, HttpProblem, advice_of, words_of
from headrace.services.rest.field_naming import field_name, in_callers_words
from headrace.services.rest.openai_fields import FIELD_NAMES as OPENAI
from headrace.services.rest.responses_fields import FIELD_NAMES as RESPONSES

OPERATORS = {
    "AdaptersFull",
    "DuplicateAdapter",
    "ReplicaNotFound",
    "DuplicateReplica",
    "ReplicaBusy",
    "PlanRejected",
    "StartupError",
    "ServerError",
}
"""Errors that no request over HTTP can bring: of RouterService's operations, of shards, and a class of classes."""

ANTHROPIC_TYPES = {
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "timeout_error",
    "api_error",
}


def below(kind: type[HeadraceError]) -> Iterator[type[HeadraceError]]:
    for child in kind.__subclasses__():
        if child.__module__.startswith(("headrace.contract", "headrace.client")):
            yield child
            yield from below(child)


def test_every_error_of_a_request_is_in_the_table_itself() -> None:
    assert headrace.client.errors is not None  # its errors are subclasses too
    missing = {kind.__name__ for kind in below(HeadraceError)} - {kind.__name__ for kind in TABLE}
    assert missing == OPERATORS


@pytest.mark.parametrize("kind", [*TABLE, HttpProblem], ids=lambda kind: kind.__name__)
def test_statuses_are_of_the_right_side(kind: type[HeadraceError]) -> None:
    error = {
        InvalidRequest: lambda: InvalidRequest.of("sampling.top_p", "is wrong"),
        FeatureUnsupported: lambda: FeatureUnsupported("sampling.top_p", "is lacking"),
        HttpProblem: lambda: HttpProblem(413, "large"),
    }.get(kind, lambda: kind.__new__(kind))()
    words = words_of(error)
    assert 400 <= words.status < 600
    assert 400 <= words.tgi_status < 600
    if issubclass(kind, ServerError) and kind is not HeadraceError:
        assert words.status in (429, 500, 502, 503)
    assert words.openai_type.endswith("_error")
    assert words.anthropic_type in ANTHROPIC_TYPES


def test_only_what_passes_says_when_to_come_back() -> None:
    assert advice_of(QueueFull("full", retry_after_s=0.2)) == {"retry-after": "1"}
    assert advice_of(QueueFull("full", retry_after_s=2.1)) == {"retry-after": "3"}
    assert advice_of(StartupError("x")) == {}
    assert advice_of(Unauthenticated("no key")) == {"www-authenticate": "Bearer"}


def test_each_protocol_uses_its_own_names_and_shape() -> None:
    error = InvalidRequest(
        [FieldViolation("stopping.max_new_token_count", "is 0"), FieldViolation("sampling.top_p", "is 7")]
    )
    openai_body = openai_answer.error_body(error)["error"]
    assert openai_body["message"] == "max_tokens: is 0; top_p: is 7"
    assert (openai_body["param"], openai_body["code"]) == ("max_tokens", "invalid_request")
    assert tgi_answer.error_body(error) == {"error": "max_new_tokens: is 0; top_p: is 7", "error_type": "validation"}
    assert anthropic_answer.error_body(error, "r") == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "max_tokens: is 0; top_p: is 7"},
        "request_id": "r",
    }


@pytest.mark.parametrize(
    ("field", "names", "expected"),
    [
        ("chat.messages[1].tool_calls[2].arguments_json", OPENAI, "messages[1].tool_calls[2].function.arguments"),
        ("chat.tools[3].parameters_json", OPENAI, "tools[3].function.parameters"),
        ("chat.tool_choice.name", OPENAI, "tool_choice.function.name"),
        ("chat.tools[3].name", RESPONSES, "tools[3].name"),
        ("chat.tools[0].parameters", ANTHROPIC, "tools[0].input_schema"),
        ("stopping.stop_sequences[4]", ANTHROPIC, "stop_sequences[4]"),
        ("constraint.json_schema", ANTHROPIC, "output_config.format"),
        ("token_ids.ids", OPENAI, "prompt"),
    ],
)
def test_places_in_lists_keep_their_numbers(field: str, names: Mapping[str, str], expected: str) -> None:
    assert field_name(field, names) == expected


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        ("must not be more than max_new_token_count, 2, is 5", OPENAI, "must not be more than max_tokens, 2, is 5"),
        ("has 9; set truncate_prompt_token_count to keep the last ones", ANTHROPIC, "has 9"),
        ("must not be set beside constraint, which says", OPENAI, "must not be set beside response_format, which says"),
        (
            "must not be set beside a chat.tool_choice that asks",
            OPENAI,
            "must not be set beside a tool_choice that asks",
        ),
        ("no adapter 'chat.completion_count' is loaded", OPENAI, "no adapter 'chat.completion_count' is loaded"),
    ],
)
def test_other_fields_in_a_sentence_have_the_callers_names(text: str, names: Mapping[str, str], expected: str) -> None:
    assert in_callers_words(text, names) == expected
