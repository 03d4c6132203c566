"""How the hidden states of a prompt become one vector."""

from dataclasses import dataclass
from enum import StrEnum


class Pooling(StrEnum):
    """Which hidden states, those after the model's last norm, and how."""

    MEAN = "mean"
    """The mean over all tokens, so none may come from the prefix cache: it keeps keys and values, no hidden states."""
    LAST = "last"
    """That of the last token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingOptions:
    """What an engine makes of them."""

    pooling: Pooling
    is_normalized: bool = True
    """Whether the vector is scaled to length 1; a vector of zeros stays as it is."""
    dimension_count: int = 0
    """Keeps only so many of the first numbers, before scaling; 0 keeps all."""
