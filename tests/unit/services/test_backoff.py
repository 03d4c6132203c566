"""Waiting doubles up to its limit and starts over after a success."""

from headrace.services.backoff import Backoff


def test_waiting_doubles_up_to_the_limit_and_starts_over() -> None:
    backoff = Backoff(first_s=0.5, limit_s=3.0)
    assert [backoff.fail() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    backoff.reset()
    assert backoff.fail() == 0.5
