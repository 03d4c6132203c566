"""The pieces of a prompt's log-probabilities become one list, whatever happens between them."""

import pytest

from headrace.contract.generation import ValidRequest
from headrace.contract.sampling import LogprobOptions, RowStopRules, SamplingParams, TextStopRules
from headrace.contract.step import RowLogprobs
from headrace.router.prompt_logprobs import PromptLogprobs
from headrace.router.sequence import Sequence
from headrace.router.sequence_update import SequenceUpdate
from headrace.router.tokenizer import Tokenizer

PROMPT = (40, 41, 42, 43)


@pytest.fixture
def sequence() -> Sequence:
    request = ValidRequest(
        request_id="r",
        model="m",
        prompt_token_ids=PROMPT,
        sampling=SamplingParams(),
        row_stop=RowStopRules(token_limit=9),
        text_stop=TextStopRules(),
        logprobs=LogprobOptions(prompt=True),
        max_new_token_count=5,
    )
    sequence = Sequence(sequence_id=1, request=request, arrival_s=0.0)
    sequence.admission_count = 1
    return sequence


def news(sequence: Sequence, *values: float, token_ids: tuple[int, ...] = ()) -> SequenceUpdate:
    report = RowLogprobs(row=0, is_prompt=True, logprobs=values, ranks=tuple(range(1, len(values) + 1)))
    return SequenceUpdate(sequence, token_ids, None, None, (report,) if values else ())


def test_pieces_add_up(example_tokenizer: Tokenizer, sequence: Sequence) -> None:
    prompt = PromptLogprobs(example_tokenizer, PROMPT)
    prompt.take(news(sequence, -1.0, -2.0))
    assert (prompt.entries, prompt.is_computed) == (None, False)
    prompt.take(news(sequence, -3.0, token_ids=(7,)))
    assert prompt.is_computed
    assert prompt.entries is not None
    assert [(entry.token_id, entry.logprob) for entry in prompt.entries] == [
        (40, None),
        (41, -1.0),
        (42, -2.0),
        (43, -3.0),
    ]
    sizes = [len(example_tokenizer.token_bytes(include_special_tokens=True)[token_id]) for token_id in PROMPT]
    assert [entry.byte_offset for entry in prompt.entries] == [sum(sizes[:place]) for place in range(4)]
    prompt.take(news(sequence, -9.0, token_ids=(8,)))
    assert len(prompt.entries) == 4


def test_a_new_admission_begins_anew(example_tokenizer: Tokenizer, sequence: Sequence) -> None:
    prompt = PromptLogprobs(example_tokenizer, PROMPT)
    prompt.take(news(sequence, -1.0, -2.0))
    sequence.admission_count = 2
    prompt.take(news(sequence, -4.0))
    prompt.take(news(sequence, -5.0, -6.0, token_ids=(7,)))
    assert prompt.entries is not None
    assert [entry.logprob for entry in prompt.entries] == [None, -4.0, -5.0, -6.0]
    assert prompt.entries[0].byte_offset == 0


def test_a_prompt_of_which_the_engine_told_too_little_is_not_passed_on(
    example_tokenizer: Tokenizer, sequence: Sequence
) -> None:
    prompt = PromptLogprobs(example_tokenizer, PROMPT)
    prompt.take(news(sequence, -1.0, token_ids=(7,)))
    assert prompt.is_computed
    assert prompt.entries is None
