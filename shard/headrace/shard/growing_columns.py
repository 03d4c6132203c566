"""Arrays with one place per row, which grow when more rows come and widen when a row needs more entries."""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Value = TypeVar("Value", bound=np.generic)


def cells_of(column: NDArray[Value], places: Ints, entries: Ints) -> NDArray[Value]:
    """Returns [row] the entry at each place of a column [place, entry].

    NOTE: an index into one dimension is a path of its own through numpy, and takes a third of the time of two
    indices where the code for it is in no cache, as it is after a forward pass.
    """
    cells: NDArray[Value] = column.reshape(-1)[places * column.shape[1] + entries]
    return cells


def fill_cells(column: NDArray[Value], places: Ints, entries: Ints, values: NDArray[Value]) -> None:
    """Sets the entry at each place of a column [place, entry]; see `cells_of`."""
    # A view: columns are contiguous.
    column.reshape(-1)[places * column.shape[1] + entries] = values


class GrowingColumns:
    """Every attribute that is an array is a column: [place] or [place, entry].

    Growing replaces an array, so callers read the attribute anew in each step.
    What a new place holds is arbitrary until its row is filled in; a new entry is -1.
    """

    def grow_places(self, count: int) -> None:
        """Makes every column at least `count` places long."""
        for name, column in vars(self).items():
            if isinstance(column, np.ndarray) and len(column) < count:
                added: NDArray[Any] = np.zeros((count - len(column), *column.shape[1:]), dtype=column.dtype)
                setattr(self, name, np.concatenate((column, added)))

    def widen(self, name: str, width: int) -> None:
        """Makes a column of entries at least `width` wide."""
        column: NDArray[np.generic] = getattr(self, name)
        if width <= column.shape[1]:
            return
        # Doubling keeps the copies rare however a sequence grows.
        added = np.full((column.shape[0], max(width, 2 * column.shape[1]) - column.shape[1]), -1, dtype=column.dtype)
        setattr(self, name, np.concatenate((column, added), axis=1))
