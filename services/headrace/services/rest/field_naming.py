"""Puts what errors say of fields of `headrace.v1` into the names that the caller's protocol or body has for them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from headrace.contract.errors import FeatureUnsupported, FieldViolation, InvalidRequest

_TURN: Final = "chat.messages["
_INDEX: Final = re.compile(r"\[\d+\]")
_GROUP: Final = re.compile(r"^(?:sampling|stopping|output|chat|constraint)\.")

_NAME_IN_TEXT: Final = re.compile(
    r"(?<![\w.'\"/-])(?:(?:sampling|stopping|output|chat)\.[a-z_]+|(?<=beside )[a-z_]+|[a-z]+(?:_[a-z]+)+)\b(?!['\"/-])"
)
"""What may be the name of a field within a sentence, and not part of something that is quoted there."""

_ADVICE: Final = re.compile(r"; set (\w+) to [^;]+$")


def field_name(path: str, names: Mapping[str, str]) -> str:
    """Returns a protocol's name for a field of `headrace.v1`; the rest of a longer path is kept.

    `names` has entries of lists as `[]`; their indices go where the other name has `[]`.
    """
    pattern = _INDEX.sub("[]", path)
    if pattern in names:
        indices = iter(_INDEX.findall(path))
        return re.sub(r"\[\]", lambda _: next(indices), names[pattern])
    for candidate in (path, path.partition("[")[0], path.rpartition(".")[0]):
        # What is within a group, such as a constraint, is looked at below.
        if candidate in names and (candidate == path or path[len(candidate)] == "[" or "." in candidate):
            return names[candidate] + path[len(candidate) :]
    group, _, rest = path.partition(".")
    # A group of fields that a protocol has as one, such as a constraint; a conversation is many there.
    return names[group] if rest and group in names and group != "chat" else _GROUP.sub("", path)


def in_callers_words(text: str, names: Mapping[str, str]) -> str:
    """Returns what is said of a field with the caller's names for the other fields that it mentions.

    Advice to set a field goes where the protocol has none like it: its name is empty in `names`.
    """
    words = {path.rpartition(".")[2]: name for path, name in names.items() if "[]" not in path} | dict(names)
    advice = _ADVICE.search(text)
    if advice is not None and words.get(advice[1]) == "":
        text = text[: advice.start()]
    return _NAME_IN_TEXT.sub(lambda found: words.get(found[0]) or _GROUP.sub("", found[0]), text)


@contextmanager
def named_after(paths: Sequence[str], aliases: Mapping[str, str] | None = None) -> Iterator[None]:
    """Puts `paths` in the place of the messages that errors name, and `aliases` in that of other fields.

    Raises:
        InvalidRequest, FeatureUnsupported: what was raised within, about the caller's field.
    """
    names = aliases or {}
    try:
        yield
    except InvalidRequest as error:
        violations = [
            FieldViolation(_renamed(v.field, paths, names), _retold(v.description, names)) for v in error.violations
        ]
        raise InvalidRequest(violations) from error
    except FeatureUnsupported as error:
        description = error.message.removeprefix(f"{error.field}: ")
        raise FeatureUnsupported(_renamed(error.field, paths, names), _retold(description, names)) from error


def _renamed(path: str, paths: Sequence[str], aliases: Mapping[str, str]) -> str:
    number, _, rest = path.removeprefix(_TURN).partition("]")
    if path.startswith(_TURN) and number.isdecimal() and int(number) < len(paths):
        return paths[int(number)] + rest
    for field, name in aliases.items():
        if path.startswith(f"{field}["):
            return name + path[len(field) :]
        # A group of fields that has one name there, such as a constraint, has it for all of them.
        if path == field or path.startswith(f"{field}."):
            return name
    return path


def _retold(description: str, aliases: Mapping[str, str]) -> str:
    """Returns a description with the aliases alone; what has one name in a protocol gets it later."""
    words = {path.rpartition(".")[2]: name for path, name in aliases.items()} | dict(aliases)
    return _NAME_IN_TEXT.sub(lambda found: words.get(found[0], found[0]), description)
