"""What an engine must know of a model's tokens to hold a completion to a grammar."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The tokens of a model as bytes, for engines that draw under a grammar."""

    token_bytes: tuple[bytes, ...]
    """By id: what each token adds to a text; the name of a special one; empty for an id that is not in use."""
    special_token_ids: tuple[int, ...]
    """Ids that mark structure and are no text of their own, ascending."""
    end_of_sequence_token_ids: tuple[int, ...]
    """Ids that end a completion; not empty."""
