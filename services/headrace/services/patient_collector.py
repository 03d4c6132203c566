"""Keeps the collector of cyclic garbage from walking through the messages that are just being sent."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

YOUNG_OBJECT_LIMIT = 10_000
"""More objects than are under way in a step of the largest batches, and few enough that a look takes a millisecond."""


@contextmanager
def patient_collector() -> Iterator[None]:
    """Looks for cycles among young objects less often inside the block.

    A message that is being written holds about a dozen objects, which are gone
    without the collector as soon as the next one begins. A step of a full batch
    has more of them at the same time than Python allows by default (700), so it
    would walk through all of them in every step, and find nothing.
    """
    default = gc.get_threshold()
    gc.set_threshold(YOUNG_OBJECT_LIMIT, *default[1:])
    try:
        yield
    finally:
        gc.set_threshold(*default)
