"""Stop sequences in a stream of text."""

import pytest

from headrace.router.stopping import StopMatcher


def released(matcher: StopMatcher, *texts: str) -> list[str]:
    return [matcher.push(text) for text in texts]


def test_text_passes_when_there_is_nothing_to_stop_at() -> None:
    matcher = StopMatcher((), include=False)
    assert released(matcher, "a", "", "b") == ["a", "", "b"]
    assert (matcher.flush(), matcher.matched) == ("", None)


@pytest.mark.parametrize(("include", "rest"), [(False, "a"), (True, "aSTOP")])
def test_a_sequence_over_three_pieces_ends_the_text(*, include: bool, rest: str) -> None:
    matcher = StopMatcher(("STOP",), include=include)
    assert "".join(released(matcher, "aS", "TO", "Pb", "c")) == rest
    assert matcher.matched == "STOP"
    assert matcher.flush() == ""


def test_what_may_begin_a_sequence_is_withheld_and_released_when_it_does_not() -> None:
    matcher = StopMatcher(("\n\nUser",), include=False)
    assert released(matcher, "hi\n", "\nU", "nited", "\n") == ["hi", "", "\n\nUnited", ""]
    assert matcher.flush() == "\n"
    assert matcher.matched is None


def test_a_failed_beginning_may_hold_another_one() -> None:
    matcher = StopMatcher(("aab",), include=False)
    assert released(matcher, "aa", "a", "b") == ["", "a", ""]
    assert matcher.matched == "aab"


def test_the_sequence_that_is_complete_first_wins() -> None:
    matcher = StopMatcher(("bcde", "cd"), include=False)
    assert matcher.push("abcdef") == "ab"
    assert matcher.matched == "cd"


def test_the_longest_of_those_that_end_together_wins() -> None:
    matcher = StopMatcher(("d", "bcd", "cd"), include=False)
    assert matcher.push("abcd") == "a"
    assert matcher.matched == "bcd"


def test_the_shorter_of_two_that_begin_together_is_not_kept_waiting() -> None:
    matcher = StopMatcher(("abc", "ab"), include=True)
    assert matcher.push("xab") == "xab"
    assert matcher.matched == "ab"


def test_the_first_of_several_occurrences_counts() -> None:
    matcher = StopMatcher(("|",), include=False)
    assert matcher.push("a|b|c") == "a"


def test_characters_with_a_meaning_in_expressions_are_ordinary() -> None:
    matcher = StopMatcher(("$", "]^", ".*"), include=False)
    assert matcher.push("a\n^]b.c") == "a\n^]b.c"
    assert matcher.push("x].*") == "x]"
    assert matcher.matched == ".*"


def test_work_is_linear_in_a_text_that_resembles_the_sequence() -> None:
    sequence = "ab" * 500 + "c"
    matcher = StopMatcher((sequence,), include=False)
    texts = released(matcher, *["ab"] * 20_000)
    assert "".join(texts) + matcher.flush() == "ab" * 20_000


def test_a_line_break_behind_the_sequence_is_no_part_of_its_end() -> None:
    """Where matching means an expression that ends in `$`, "END\\n" would count as well, and "END." never."""
    matcher = StopMatcher(("END",), include=False)
    assert released(matcher, "one EN", "D.\n") == ["one ", ""]
    assert matcher.matched == "END"


def test_a_sequence_as_long_as_is_allowed_is_found_over_many_pieces() -> None:
    sequence = "".join(chr(ord("a") + index % 26) for index in range(1024))
    matcher = StopMatcher((sequence,), include=False)
    pieces = [sequence[start : start + 3] for start in range(0, len(sequence), 3)]
    assert "".join(released(matcher, "before ", *pieces, " behind")) == "before "
    assert matcher.matched == sequence
