"""Parses and checks the body of a request: what is wrong is named by its path, and nothing in it is passed over."""

import json
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from headrace.contract.errors import FieldViolation, InvalidRequest
from headrace.services.rest.errors import HttpProblem
from headrace.services.rest.json_bounds import check_parts

_VIOLATION_LIMIT = 20
_SHOWN_CHARACTER_COUNT = 60
_CONSIDERED_COUNT = 200
"""Of the problems that were found, those that are compared with each other to tell which ones to show."""

BodyT = TypeVar("BodyT", bound=BaseModel)


def parse_body(raw: bytes, kind: type[BodyT]) -> BodyT:
    """Checks a body.

    Raises:
        HttpProblem: it is no JSON, has too many parts, or holds a key twice.
        InvalidRequest: it is JSON of another shape; every wrong field is named.
    """
    check_parts(raw)
    try:
        body = kind.model_validate_json(raw)
    except ValidationError as error:
        raise _explain(error, raw) from error
    # Last, since the check above bounds how deep it is.
    _refuse_what_parsers_pass_over(raw)
    return body


def _refuse_what_parsers_pass_over(raw: bytes) -> None:
    """Refuses keys that come twice, of which all but the last would be dropped, and numbers that JSON does not have."""
    try:
        _SCANNER.decode(raw.decode())
    except UnicodeDecodeError as error:  # what comes between texts was not decoded before
        raise HttpProblem(400, "the body is not JSON: it is no UTF-8") from error


def _check_keys(pairs: list[tuple[str, object]]) -> None:
    if len(dict(pairs)) == len(pairs):
        return
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise HttpProblem(400, f"the body has {key[:_SHOWN_CHARACTER_COUNT]!r} twice in one object")
        seen.add(key)


def _refuse_constant(text: str) -> None:
    raise HttpProblem(400, f"the body is not JSON: it holds {text}")


def _check_float(text: str) -> None:
    if float(text) in (float("inf"), float("-inf")):
        raise HttpProblem(400, f"the body holds a number that is too large: {text[:_SHOWN_CHARACTER_COUNT]}")


_SCANNER: Final = json.JSONDecoder(
    object_pairs_hook=_check_keys, parse_constant=_refuse_constant, parse_float=_check_float
)
"""Looks at every key and number, and keeps nothing."""


def _explain(error: ValidationError, raw: bytes) -> InvalidRequest | HttpProblem:
    # A list may be wrong in every place; what is not shown is not worth the time of all other callers.
    problems = error.errors(include_url=False, include_input=False)[:_CONSIDERED_COUNT]
    if problems[0]["type"] == "json_invalid":
        return HttpProblem(400, f"the body is not JSON: {problems[0]['msg'].removeprefix('Invalid JSON: ')}")
    body = from_json(raw)
    found: dict[str, str] = {}
    for problem in problems:
        kind = problem["type"]
        path = _path(problem["loc"], body, is_missing=kind == "missing")
        message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        if kind == "extra_forbidden":
            message = "is unknown here"
        elif kind == "missing":
            message = "is missing"
        elif kind == "union_tag_not_found":
            message = "must be an object with a type"
        elif kind == "too_short":
            message = (
                f"must have at least {problem['ctx']['min_length']} entries, has {problem['ctx']['actual_length']}"
            )
        elif kind == "too_long":
            message = f"must have at most {problem['ctx']['max_length']} entries, has {problem['ctx']['actual_length']}"
        elif kind == "union_tag_invalid":
            context = problem.get("ctx", {})
            path = f"{path}.type"
            message = f"must be one of {context['expected_tags']}, not {context['tag'][:_SHOWN_CHARACTER_COUNT]!r}"
        found.setdefault(path, message)
    # The members of a union are tried one by one; who failed deepest came closest to what was meant.
    violations = [
        FieldViolation(path, message)
        for path, message in found.items()
        if not any(other != path and other.startswith((f"{path}.", f"{path}[")) for other in found)
    ]
    return InvalidRequest(violations[:_VIOLATION_LIMIT])


def _path(location: tuple[int | str, ...], body: object, *, is_missing: bool) -> str:
    """Returns the path of a field in the body, without the names of a union's members that pydantic puts between."""
    path = ""
    value = body
    for place, part in enumerate(location):
        if isinstance(part, int):
            path += f"[{part}]"
            value = value[part] if isinstance(value, list) and part < len(value) else None
        elif isinstance(value, dict) and (part in value or (is_missing and place == len(location) - 1)):
            path += f".{part}" if path else part
            value = value.get(part)
    return path
