from math import inf

from headrace.contract.histogram import Histogram


def test_a_bound_belongs_to_its_bucket_and_buckets_add_up() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 3.0):
        histogram.observe(value)
    assert list(histogram.cumulative()) == [(1.0, 2), (2.0, 3), (inf, 4)]
    assert histogram.count == 4
    assert histogram.sum == 6.0


def test_a_value_that_came_often_is_counted_at_once() -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.observe(1.5, 3)
    assert list(histogram.cumulative()) == [(1.0, 0), (2.0, 3), (inf, 3)]
    assert histogram.sum == 4.5
