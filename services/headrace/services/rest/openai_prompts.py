"""The forms in which OpenAI's completions and embeddings take one or several texts."""

from typing import Annotated, TypeVar

from pydantic import FailFast

from headrace.client.requests import Prompt

EntryT = TypeVar("EntryT")


class _FirstWrong(FailFast):
    __hash__ = object.__hash__  # for unions


Entries = Annotated[list[EntryT], _FirstWrong()]
"""A list of which the first wrong entry is told: millions would take seconds, for which all other callers wait."""

PromptForms = str | Entries[int] | Entries[str] | Entries[Entries[int]]
"""A text, token ids, or a list of either."""


def prompts_of(given: PromptForms) -> list[Prompt]:
    """Returns the prompts, one for each text or list of token ids."""
    if isinstance(given, str):
        return [given]
    if given and isinstance(given[0], int):
        return [[token_id for token_id in given if isinstance(token_id, int)]]
    return [entry for entry in given if not isinstance(entry, int)]
