"""The messages of a step are not looked through, cycles are still found, and all is as before in the end."""

import gc
import weakref

from headrace.services.patient_collector import YOUNG_OBJECT_LIMIT, patient_collector


class Node:
    """Something that only the collector can free."""

    def __init__(self) -> None:
        self.me = self


def collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


def test_objects_that_are_gone_by_themselves_are_not_looked_through() -> None:
    with patient_collector():
        gc.collect()
        before = collections()
        for _ in range(10):
            messages = [[[]] for _ in range(YOUNG_OBJECT_LIMIT // 4)]
            del messages
        assert collections() == before


def test_cycles_are_still_found() -> None:
    with patient_collector():
        gc.collect()
        node = weakref.ref(Node())
        assert node() is not None
        kept = [Node() for _ in range(YOUNG_OBJECT_LIMIT)]
        assert kept
        assert node() is None


def test_the_collector_is_as_before_in_the_end() -> None:
    before = gc.get_threshold()
    with patient_collector():
        assert gc.get_threshold() != before
    assert gc.get_threshold() == before
