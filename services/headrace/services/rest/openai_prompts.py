"""The forms in which OpenAI's completions and embeddings take one or several texts."""

from headrace.client.requests import Prompt

PromptForms = str | list[int] | list[str] | list[list[int]]
"""A text, token ids, or a list of either."""


def prompts_of(given: PromptForms) -> list[Prompt]:
    """Returns the prompts, one for each text or list of token ids."""
    if isinstance(given, str):
        return [given]
    if given and isinstance(given[0], int):
        return [[token_id for token_id in given if isinstance(token_id, int)]]
    return [entry for entry in given if not isinstance(entry, int)]
