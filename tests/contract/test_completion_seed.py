"""The seeds of a request's completions, which other languages may want to compute too."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.contract.sampling import completion_seed

seeds = st.integers(0, 2**64 - 1)


def test_the_outputs_are_those_of_splitmix64() -> None:
    """As the generator's reference implementation prints them for the state 1234567."""
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [completion_seed(1234567, index) for index in range(1, 5)] == outputs


@given(seeds)
def test_the_first_completion_has_the_seed_of_the_request(seed: int) -> None:
    assert completion_seed(seed, 0) == seed


@given(seeds, st.integers(2, 200))
def test_the_seeds_of_the_others_differ(seed: int, count: int) -> None:
    derived = {completion_seed(seed, index) for index in range(1, count)}
    assert len(derived) == count - 1
    assert all(0 <= value < 2**64 for value in derived)
