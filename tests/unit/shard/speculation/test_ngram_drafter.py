"""What came after the last tokens before is guessed to come again, whatever came meanwhile."""

import numpy as np
from guessing import TableEngine, random_logits
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.contract.sampling import RowStopRules, SamplingParams
from headrace.contract.step import AdmittedSequence
from headrace.shard.input_batch import InputBatch
from headrace.shard.speculation.ngram_drafter import NGRAM_TOKEN_COUNT, NgramDrafter

DESCRIPTION = TableEngine(random_logits(8), vocabulary_size=50_000).description


def admit(batch: InputBatch, sequence_id: int, tokens: list[int]) -> int:
    return batch.columns.take(
        AdmittedSequence(
            sequence_id=sequence_id,
            token_ids=tuple(tokens),
            prompt_token_count=len(tokens),
            computed_token_count=0,
            block_ids=(),
            sampling=SamplingParams(),
            stopping=RowStopRules(token_limit=512),
            may_draft=True,
        )
    )


def expected_guesses(tokens: list[int], count: int) -> list[int] | None:
    """The tokens after the last earlier place of the last n-gram, by looking at all of them."""
    size = NGRAM_TOKEN_COUNT
    for end in range(len(tokens) - 1, size - 1, -1):
        if tokens[end - size : end] == tokens[-size:]:
            followers = tokens[end:]
            return [followers[index % len(followers)] for index in range(count)]
    return None


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(st.lists(st.integers(40_000, 40_002), min_size=1, max_size=60), min_size=1, max_size=3),
    arrivals=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5)), max_size=40),
    count=st.integers(1, 9),
)
def test_guesses_are_those_of_a_full_search(
    texts: list[list[int]], arrivals: list[tuple[int, int]], count: int
) -> None:
    """Tokens arrive in pieces of any size, at some rows and not at others."""
    batch, drafter = InputBatch(DESCRIPTION), NgramDrafter()
    known = [text[: 1 + len(text) // 2] for text in texts]
    left = [text[1 + len(text) // 2 :] for text in texts]
    places = np.array([admit(batch, index, text) for index, text in enumerate(known)])
    for number, piece in [(0, 0), *arrivals]:
        index = number % len(texts)
        for _ in range(piece):
            if left[index]:
                batch.columns.append_tokens(places[[index]], np.array([len(known[index])]), np.array(left[index][:1]))
                known[index].append(left[index].pop(0))
        found = drafter.look(batch, places)
        expected = [expected_guesses(tokens, count) for tokens in known]
        assert found.tolist() == [guesses is not None for guesses in expected]
        if found.any():
            guesses = drafter.propose(batch, places[found], np.full(found.sum(), count))
            assert guesses.tolist() == [guesses for guesses in expected if guesses is not None]


def test_a_place_forgets_the_row_that_had_it() -> None:
    batch, drafter = InputBatch(DESCRIPTION), NgramDrafter()
    place = admit(batch, 1, [1, 2, 3, 4, 1, 2, 3])
    assert drafter.look(batch, np.array([place])).tolist() == [True]
    batch.columns.free([place])
    assert admit(batch, 2, [9, 9, 1, 2, 3]) == place
    assert drafter.look(batch, np.array([place])).tolist() == [False]
