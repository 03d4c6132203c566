"""What a step's result means for one sequence."""

from typing import NamedTuple

from headrace.contract.step import RowEnd, RowError, RowLogprobs
from headrace.router.sequence import Sequence


class SequenceUpdate(NamedTuple):
    """News of a sequence: tokens, its end or both.

    A tuple with names and not a frozen dataclass, since one is made for every
    row of every step and it takes a third of the time.
    """

    sequence: Sequence
    """Holds the tokens already."""
    token_ids: tuple[int, ...]
    """The tokens that came back, an ending one included."""
    end: RowEnd | None
    """Why the shard ended it; the scheduler has dropped it then."""
    error: RowError | None
    """Why it failed; the scheduler has dropped it then."""
    logprobs: tuple[RowLogprobs, ...]
    """Those that came back with this step. The prompt's begin anew with each admission, until the first token."""
    vector: bytes | None = None
    """Its pooled hidden states, with the end POOLED: float32, little-endian."""
