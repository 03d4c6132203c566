"""Who guesses the next tokens of rows."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.shard.input_batch import InputBatch

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Drafter(Protocol):
    """Guesses tokens. It may be wrong as often as it likes: guesses never change what is drawn."""

    @property
    def prior(self) -> float:
        """Probability that a guess for an unknown row is right."""
        ...

    @property
    def guesses_freely(self) -> bool:
        """Whether the first guesses of all rows cost next to nothing, so that they are always worth comparing."""
        ...

    def depth_s(self, row_count: int) -> float:
        """Returns what guessing one token for each of so many rows takes, in seconds."""
        ...

    def look(self, batch: InputBatch, places: Ints) -> Bools:
        """Takes in the rows' new tokens if that costs next to nothing; returns [row] which it could guess for."""
        ...

    def prepare(self, batch: InputBatch, places: Ints) -> Bools:
        """Gets ready to guess for rows of the last `look`, which may take a while; returns [row] which are ready."""
        ...

    def propose(self, batch: InputBatch, places: Ints, counts: Ints) -> Ints:
        """Returns [row, depth] guesses for rows that are ready; the first `counts` of each row are of meaning."""
        ...
