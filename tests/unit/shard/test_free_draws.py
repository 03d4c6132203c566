"""Rows that are drawn before their grammar is asked: the tokens that a draw under the mask would bring, as often."""

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from guessing import Prophet, TableEngine, random_logits
from plan_driver import Job, PlanDriver

from headrace.contract.sampling import BannedText, LogprobOptions, SamplingParams
from headrace.contract.step import NO_TOKEN_LEFT, RowEnd
from headrace.contract.vocabulary import Vocabulary
from headrace.kernels.dispatch import select
from headrace.kernels.philox import SECOND_NUMBER
from headrace.shard.grammar_rows import GrammarRows

END, A, B, AB = 2, 3, 4, 5
PROMPT = (1, 0)
SMALL = Vocabulary(
    token_bytes=(b"<0>", b"<1>", b"<end>", b"a", b"b", b"ab"),
    special_token_ids=(0, 1, 2),
    end_of_sequence_token_ids=(END,),
)
SIZE = 24
LARGE = Vocabulary(
    token_bytes=tuple(b"<%d>" % token_id if token_id < 3 else bytes([94 + token_id]) for token_id in range(SIZE)),
    special_token_ids=(0, 1, 2),
    end_of_sequence_token_ids=(END,),
)
LOGITS = random_logits(SIZE)
GRAMMAR = "start: /[a-f]{2,9}|[c-k]{3,7}/"
KERNELS = select(torch.device("cpu"), "reference")
TEMPERATURE, BIAS = 0.9, (A, 1.5)
DRAW_COUNT = 6000


def drive(grammar: str, *, vocabulary: Vocabulary = LARGE, prophet: Prophet | None = None) -> PlanDriver:
    size = len(vocabulary.token_bytes)
    engine = TableEngine(random_logits(size), vocabulary_size=size, prophet=prophet)
    engine.load_vocabulary(vocabulary)
    driver = PlanDriver(engine, may_draft=prophet is not None)
    driver.grammar = grammar
    return driver


def ended(driver: PlanDriver, sampling: SamplingParams, **stopping: object) -> Job:
    job = driver.submit(PROMPT, 12, sampling=sampling, end_of_sequence_token_ids=(END,), **stopping)
    driver.run()
    return job


@pytest.mark.parametrize("guess", [None, (A, B, END), (AB, A, END)])
def test_the_distribution_is_that_under_the_mask(guess: tuple[int, ...] | None) -> None:
    """Whole texts under a bias, against the probability of each of the language, computed apart."""
    prophet = None if guess is None else Prophet([PROMPT + guess], wrong_one_in=0, vocabulary_size=6)
    driver = drive("start: /[ab]{2,3}/", vocabulary=SMALL, prophet=prophet)
    jobs = [
        driver.submit(
            PROMPT, 4,
            sampling=SamplingParams(temperature=TEMPERATURE, logit_bias=(BIAS,), seed=seed),
            end_of_sequence_token_ids=(END,),
        )
        for seed in range(DRAW_COUNT)
    ]  # fmt: skip
    driver.run()
    seen = Counter(tuple(job.generated) for job in jobs)
    expected = {text: DRAW_COUNT * probability for text, probability in enumerated((), "")}
    assert set(seen) <= set(expected)
    assert sum(expected.values()) == pytest.approx(DRAW_COUNT)
    statistic = sum((seen[text] - count) ** 2 / count for text, count in expected.items())
    freedom = len(expected) - 1
    # Chance exceeds this once in ten thousand (Wilson and Hilferty's approximation); the seeds are fixed.
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3


def enumerated(tokens: tuple[int, ...], text: str) -> Iterator[tuple[tuple[int, ...], float]]:
    """Yields every way to go on to a text of two or three letters, and how likely that is."""
    if tokens and tokens[-1] == END:
        yield tokens, 1.0
        return
    spelled = {A: "a", B: "b", AB: "ab"}
    allowed = [token_id for token_id, letters in spelled.items() if len(text + letters) <= 3]
    allowed += [END] if len(text) >= 2 else []
    logits = random_logits(6)((*PROMPT, *tokens)).tolist()
    logits[BIAS[0]] += BIAS[1]
    weights = {token_id: math.exp(logits[token_id] / TEMPERATURE) for token_id in allowed}
    for token_id, weight in weights.items():
        for whole, probability in enumerated((*tokens, token_id), text + spelled.get(token_id, "")):
            yield whole, weight / sum(weights.values()) * probability


@pytest.mark.parametrize("temperature", [0.0, 0.8, 2.0])
@pytest.mark.parametrize("seed", range(8))
def test_a_token_is_drawn_by_two_numbers_of_its_position(temperature: float, seed: int) -> None:
    """As defined: by the first without the mask, and where that is refused by the second under it."""
    job = ended(drive(GRAMMAR), SamplingParams(temperature=temperature, seed=seed))
    rows = GrammarRows(SIZE)
    rows.load(LARGE)
    refused_count = 0
    for index, token_id in enumerate(job.generated):
        rows.fill(0, GRAMMAR, job.generated[:index])
        rows.begin(np.array([0]))
        masks = rows.masks()
        assert masks is not None
        is_allowed = np.unpackbits(masks.words.view(np.uint8), count=SIZE, bitorder="little").astype(bool)
        tokens = (*PROMPT, *job.generated[:index])
        logits = LOGITS(tokens)[None, :]
        columns = {
            "temperature": torch.tensor([temperature]),
            "top_k": torch.tensor([0]),
            "top_p": torch.tensor([1.0]),
            "seeds": torch.tensor([seed]),
        }
        first = KERNELS.sample(logits, positions=torch.tensor([len(tokens)]), **columns).item()
        masked = logits.masked_fill(torch.from_numpy(~is_allowed), -torch.inf)
        second = KERNELS.sample(masked, positions=torch.tensor([len(tokens) | SECOND_NUMBER]), **columns).item()
        assert token_id == (first if is_allowed[first] else second)
        refused_count += not is_allowed[first]
        assert temperature > 0 or token_id == int(masked.argmax())
    assert refused_count > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_minimum_bars_the_end_until_nothing_else_is_left(temperature: float) -> None:
    for seed in range(20):
        sampling = SamplingParams(temperature=temperature, seed=seed)
        long = ended(drive(GRAMMAR), sampling, min_new_token_count=6)
        assert (len(long.generated) >= 7, long.end) == (True, RowEnd.END_OF_SEQUENCE)
        short = ended(drive('start: "cab"'), sampling, min_new_token_count=6)
        assert (short.generated, short.end) == ([5, 3, 4, END], RowEnd.END_OF_SEQUENCE)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_banned_besides_stays_banned(temperature: float) -> None:
    """All but one letter, and that one twice: the language decides whether the end is left, or nothing."""
    others = tuple(token_id for token_id in range(SIZE) if token_id not in (END, A))
    banned = BannedText(
        state_count=1, token_ids=others, start_token_ids=(A,), start_states=(0,), end_states=(0,), end_token_ids=(A,)
    )  # fmt: skip
    sampling = SamplingParams(temperature=temperature, banned_text=banned, seed=3)
    letter = ended(drive('start: "a"'), sampling, min_new_token_count=6)
    assert (letter.generated, letter.end) == ([A, END], RowEnd.END_OF_SEQUENCE)
    for grammar in ('start: "aa"', "start: /a[a-z]?/"):
        job = ended(drive(grammar), sampling, min_new_token_count=6)
        assert job.generated == [A]
        assert job.error is not None
        assert job.error.reason == NO_TOKEN_LEFT


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_report_of_what_was_drawn_from_changes_no_token(temperature: float) -> None:
    sampling = SamplingParams(temperature=temperature, seed=4)
    driver = drive(GRAMMAR)
    plain, told, own = (
        driver.submit(PROMPT, 12, sampling=sampling, logprobs=options, end_of_sequence_token_ids=(END,))
        for options in (
            LogprobOptions(),
            LogprobOptions(sampled=True, top_count=SIZE, processed=True),
            LogprobOptions(sampled=True),
        )
    )
    driver.run()
    assert plain.generated == told.generated == own.generated
    for index, (report, raw) in enumerate(zip(told.logprobs, own.logprobs, strict=True)):
        tokens, drawn = (*PROMPT, *told.generated[:index]), told.generated[index]
        logits = LOGITS(tokens)
        assert raw.logprobs[0] == pytest.approx(logits.log_softmax(0)[drawn].item(), abs=1e-5)
        # Tokens that are barred are last, and have no probability.
        ids = [
            token_id for token_id, value in zip(report.top_token_ids, report.top_logprobs, strict=True) if value > -1e9
        ]
        kept = logits[ids] / (temperature or 1.0)
        assert drawn in ids
        assert len(ids) < SIZE
        assert report.logprobs[0] == pytest.approx(kept.log_softmax(0)[ids.index(drawn)].item(), abs=1e-5)
