"""A stream is cut at the same place as the whole text, however it is divided."""

from hypothesis import example, given
from hypothesis import strategies as st

from headrace.router.stopping import StopMatcher

LETTERS = "ab\n🎉"
SEQUENCES = st.lists(st.text(LETTERS, min_size=1, max_size=5), max_size=5).map(tuple)
PIECES = st.lists(st.text(LETTERS, max_size=6), max_size=12)


def first_match(text: str, sequences: tuple[str, ...]) -> str | None:
    """Returns the text up to the end of the sequence that is complete first; the longest comes first among equals."""
    for end in range(len(text) + 1):
        ending = [sequence for sequence in sequences if text[:end].endswith(sequence)]
        if ending:
            return max(ending, key=len)
    return None


def expected_text(text: str, sequences: tuple[str, ...], *, include: bool) -> str:
    for end in range(len(text) + 1):
        ending = [sequence for sequence in sequences if text[:end].endswith(sequence)]
        if ending:
            return text[:end] if include else text[: end - len(max(ending, key=len))]
    return text


@given(sequences=SEQUENCES, pieces=PIECES, include=st.booleans())
@example(sequences=("aab", "ab"), pieces=["a", "a", "ab"], include=False)
def test_cut_is_that_of_the_whole_text(sequences: tuple[str, ...], pieces: list[str], *, include: bool) -> None:
    matcher = StopMatcher(sequences, include=include)
    text = "".join(matcher.push(piece) for piece in pieces) + matcher.flush()
    whole = "".join(pieces)
    assert text == expected_text(whole, sequences, include=include)
    assert matcher.matched == first_match(whole, sequences)


@given(sequences=SEQUENCES, pieces=PIECES)
def test_no_more_is_withheld_than_may_still_match(sequences: tuple[str, ...], pieces: list[str]) -> None:
    """What was released and what is withheld are the text so far, and the latter begins a sequence."""
    matcher = StopMatcher(sequences, include=False)
    sent = seen = ""
    for piece in pieces:
        sent += matcher.push(piece)
        seen += piece
        if matcher.matched is not None:
            break
        withheld = seen[len(sent) :]
        assert seen.startswith(sent)
        assert not withheld or any(sequence.startswith(withheld) and sequence != withheld for sequence in sequences)
