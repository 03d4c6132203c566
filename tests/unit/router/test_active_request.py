"""Which completions a request returns, and what it says of them, without a scheduler."""

import pytest
import tokenizers
from tokenizers import decoders, models

from headrace.contract.generation import (
    FinishReason,
    GenerationDelta,
    GenerationEvent,
    GenerationFinished,
    ValidRequest,
)
from headrace.contract.sampling import (
    LogprobOptions,
    RowStopRules,
    SamplingParams,
    TextStopRules,
    completion_seed,
)
from headrace.contract.step import RowEnd, RowLogprobs
from headrace.router.active_request import ActiveRequest
from headrace.router.sequence import Sequence
from headrace.router.sequence_update import SequenceUpdate
from headrace.router.tokenizer import Tokenizer

LETTERS = "abcdefghij"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel({letter: n for n, letter in enumerate(LETTERS)}, unk_token="a"))
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend)


class Candidates:
    """A request whose sequences do as they are told."""

    def __init__(self, tokenizer: Tokenizer, *, completion_count: int, best_of: int, stop: str = "") -> None:
        request = ValidRequest(
            request_id="r",
            model="m",
            prompt_token_ids=(0, 1),
            sampling=SamplingParams(seed=9),
            row_stop=RowStopRules(token_limit=100),
            text_stop=TextStopRules(stop_sequences=(stop,) if stop else ()),
            logprobs=LogprobOptions(),
            max_new_token_count=98,
            completion_count=completion_count,
            best_of=best_of,
        )
        self.sequences = [
            Sequence(sequence_id=index + 1, request=request.of_completion(index), arrival_s=0.0)
            for index in range(best_of)
        ]
        self.active = ActiveRequest(request, self.sequences, tokenizer, None)
        self.active.start(0.5)

    def draw(self, index: int, token_id: int, logprob: float, end: RowEnd | None = None) -> None:
        report = RowLogprobs(row=index, is_prompt=False, logprobs=(logprob,), ranks=(1,))
        self.active.advance(SequenceUpdate(self.sequences[index], (token_id,), end, None, (report,)), 1.0)

    async def events(self) -> list[GenerationEvent]:
        return [event async for event in self.active.stream.events()]


async def ends_and_texts(candidates: Candidates) -> tuple[list[tuple[int, float | None]], list[str]]:
    """Returns the candidate and the mean of each completion in order, and their texts."""
    events = await candidates.events()
    finished = events[-1]
    assert isinstance(finished, GenerationFinished)
    seeds = [completion_seed(9, index) for index in range(len(candidates.sequences))]
    assert [end.index for end in finished.ends] == list(range(len(finished.ends)))
    texts = {event.index: event.text for event in events if isinstance(event, GenerationDelta)}
    return [(seeds.index(end.seed), end.mean_logprob) for end in finished.ends], [
        texts.get(end.index, "") for end in finished.ends
    ]


def test_candidates_report_what_their_rank_needs_and_nothing_more(tokenizer: Tokenizer) -> None:
    ranked = Candidates(tokenizer, completion_count=1, best_of=2)
    assert all(sequence.request.logprobs == LogprobOptions(sampled=True) for sequence in ranked.sequences)
    plain = Candidates(tokenizer, completion_count=2, best_of=2)
    assert all(sequence.request.logprobs == LogprobOptions() for sequence in plain.sequences)


async def test_a_mean_and_no_sum_decides(tokenizer: Tokenizer) -> None:
    """A sum would prefer the one that says least."""
    candidates = Candidates(tokenizer, completion_count=2, best_of=3)
    candidates.draw(0, 3, -1.0, RowEnd.STOP_TOKEN)
    candidates.draw(2, 4, -3.0, RowEnd.STOP_TOKEN)
    for _ in range(3):
        candidates.draw(1, 5, -0.5)
    candidates.draw(1, 6, -0.9, RowEnd.STOP_TOKEN)
    assert await ends_and_texts(candidates) == ([(1, pytest.approx(-0.6)), (0, -1.0)], ["fffg", "d"])


async def test_the_first_of_equals_wins(tokenizer: Tokenizer) -> None:
    candidates = Candidates(tokenizer, completion_count=2, best_of=4)
    for index, logprob in ((3, -1.0), (2, -1.0), (1, -1.0), (0, -2.0)):
        candidates.draw(index, index, logprob, RowEnd.STOP_TOKEN)
    assert await ends_and_texts(candidates) == ([(1, -1.0), (2, -1.0)], ["b", "c"])


async def test_one_without_a_token_comes_last(tokenizer: Tokenizer) -> None:
    candidates = Candidates(tokenizer, completion_count=2, best_of=2)
    assert candidates.active.request.is_ranked is False
    candidates = Candidates(tokenizer, completion_count=3, best_of=4)
    candidates.draw(1, 3, -50.0)
    candidates.draw(3, 4, -40.0)
    candidates.active.finish(FinishReason.TIME_LIMIT, 2.0)
    ends, texts = await ends_and_texts(candidates)
    assert (ends, texts) == ([(3, -40.0), (1, -50.0), (0, None)], ["e", "d", ""])


async def test_tokens_after_a_stop_sequence_do_not_count(tokenizer: Tokenizer) -> None:
    candidates = Candidates(tokenizer, completion_count=1, best_of=2, stop="c")
    report = RowLogprobs(row=0, is_prompt=False, logprobs=(-1.0, -1.0, -90.0), ranks=(1, 1, 1))
    update = SequenceUpdate(candidates.sequences[0], (3, 2, 9), None, None, (report,))
    assert candidates.active.advance(update, 1.0)
    candidates.draw(1, 2, -2.0)
    assert await ends_and_texts(candidates) == ([(0, -1.0)], ["d"])


async def test_the_reader_sees_no_candidate_before_the_last_has_ended(tokenizer: Tokenizer) -> None:
    candidates = Candidates(tokenizer, completion_count=1, best_of=2)
    candidates.draw(0, 3, -1.0, RowEnd.STOP_TOKEN)
    assert not candidates.active.has_ended
    assert not candidates.active.has_sent_tokens
    assert candidates.active.open_sequences == (candidates.sequences[1],)
    candidates.draw(1, 4, -0.5, RowEnd.STOP_TOKEN)
    assert candidates.active.has_ended
    events = await candidates.events()
    assert [type(event).__name__ for event in events] == ["GenerationStarted", "GenerationDelta", "GenerationFinished"]
