"""Every engine that declares an option draws by its definition: told by log-probabilities before and after."""

import math
from collections.abc import Callable

import pytest
from plan_driver import GREEDY, Job, PlanDriver

from headrace.contract.errors import StartupError
from headrace.contract.sampling import BannedText, LengthPenalty, LogprobOptions, SamplingParams, Watermark
from headrace.contract.step import RowEnd
from headrace.contract.watermark import is_green, threshold_of
from headrace.shard.engine import Engine

PROMPT = (41, 45, 41, 77, 45, 41)
COUNT = 8
TOP_COUNT = 20
RAW = LogprobOptions(sampled=True, top_count=TOP_COUNT)
PROCESSED = LogprobOptions(sampled=True, top_count=TOP_COUNT, processed=True)
Shift = Callable[[int, tuple[int, ...]], float]
"""What an option adds to the logit of a token, given the tokens that were generated before."""


def needs(engine: Engine, *fields: str) -> None:
    """Skips the test unless the engine declares all of these; that it refuses others is another test's."""
    for field in (*fields, "output.processed_logprobs"):
        if field not in engine.description.supported_fields:
            pytest.skip(f"{field} is not offered")


def run_twice(engine: Engine, sampling: SamplingParams, **rules: object) -> tuple[Job, Job]:
    """Returns the same request with its log-probabilities as the model gives them, and as they were drawn from."""
    engine.reset()
    driver = PlanDriver(engine)
    raw, processed = (
        driver.submit(PROMPT, COUNT, sampling=sampling, logprobs=options, **rules) for options in (RAW, PROCESSED)
    )
    driver.run()
    assert raw.generated == processed.generated
    assert raw.generated
    return raw, processed


def tops(job: Job) -> list[dict[int, float]]:
    """Returns the likeliest tokens at each position; dropped ones are left out."""
    pairs = [zip(report.top_token_ids, report.top_logprobs, strict=True) for report in job.logprobs]
    return [{token_id: value for token_id, value in position if math.isfinite(value)} for position in pairs]


def check_shifts(raw: Job, processed: Job, shift: Shift) -> None:
    """Checks that the logits differ by these shifts, but for the constant that makes probabilities of them."""
    found = 0
    for index, (before, after) in enumerate(zip(tops(raw), tops(processed), strict=True)):
        generated = tuple(raw.generated[:index])
        constants = [after[token] - before[token] - shift(token, generated) for token in before.keys() & after.keys()]
        assert constants == pytest.approx([constants[0]] * len(constants), abs=1e-4)
        found += len(constants)
    assert found > COUNT, "the distributions have to share tokens"


def test_a_bias_is_added_to_the_logits_of_its_tokens(engine: Engine) -> None:
    needs(engine, "sampling.logit_bias")
    free, _ = run_twice(engine, GREEDY)
    first, second, third = free.logprobs[0].top_token_ids[:3]
    lead = free.logprobs[0].top_logprobs[0] - free.logprobs[0].top_logprobs[2]
    bias = {third: lead + 1.0, second: -2.0}
    raw, processed = run_twice(engine, SamplingParams(temperature=0.0, logit_bias=tuple(sorted(bias.items()))))
    assert raw.generated[0] == third
    assert raw.logprobs[0].top_token_ids[0] == first, "the model's own distribution stays as it is"
    assert raw.logprobs[0].ranks == (3,)
    check_shifts(raw, processed, lambda token_id, _: bias.get(token_id, 0.0))


def test_frequency_and_presence_count_generated_tokens_and_no_prompt(engine: Engine) -> None:
    needs(engine, "sampling.frequency_penalty", "sampling.presence_penalty")
    asked = SamplingParams(temperature=1.0, seed=11, top_k=2, frequency_penalty=0.7, presence_penalty=-0.4)
    plain = SamplingParams(temperature=0.0, frequency_penalty=0.7, presence_penalty=-0.4)

    def shift(token_id: int, generated: tuple[int, ...]) -> float:
        times = generated.count(token_id)
        return -0.7 * times + 0.4 * bool(times)

    check_shifts(*run_twice(engine, plain), shift)
    raw, processed = run_twice(engine, asked)
    assert all(len(position) <= 2 for position in tops(processed))
    assert len(raw.generated) == COUNT


def test_a_repetition_penalty_makes_all_that_was_seen_less_likely_and_nothing_else(engine: Engine) -> None:
    needs(engine, "sampling.repetition_penalty")
    raw, processed = run_twice(engine, SamplingParams(temperature=0.0, repetition_penalty=1.5))
    for index, (before, after) in enumerate(zip(tops(raw), tops(processed), strict=True)):
        seen = {*PROMPT, *raw.generated[:index]}
        unseen = [after[token] - before[token] for token in before.keys() & after.keys() if token not in seen]
        assert unseen == pytest.approx([unseen[0]] * len(unseen), abs=1e-4)
        assert all(after[token] - before[token] < unseen[0] for token in before.keys() & after.keys() & seen)


def test_a_length_penalty_raises_the_end_from_its_start_on(engine: Engine) -> None:
    needs(engine, "sampling.length_penalty")
    free, _ = run_twice(engine, GREEDY)
    end = free.logprobs[COUNT - 1].top_token_ids[1]
    rules = {"end_of_sequence_token_ids": (end,)}
    penalty = LengthPenalty(start_index=COUNT - 2, decay_factor=10.0)
    raw, processed = run_twice(engine, SamplingParams(temperature=0.0, length_penalty=penalty), **rules)
    assert raw.end is RowEnd.END_OF_SEQUENCE or len(raw.generated) == COUNT
    for index, (before, after) in enumerate(zip(tops(raw), tops(processed), strict=True)):
        others = [after[token] - before[token] for token in before.keys() & after.keys() - {end}]
        assert others == pytest.approx([others[0]] * len(others), abs=1e-4)
        if end in before and end in after:
            raised = after[end] - before[end] - others[0]
            assert (raised > 1e-3) is (index > penalty.start_index)
    assert raw.generated[-1] == end, "the factor is large enough to end any text"


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (SamplingParams(temperature=1.0, seed=3, top_k=3), lambda p: set(sorted(p, key=lambda t: (-p[t], t))[:3])),
        (SamplingParams(temperature=1.0, seed=3, min_p=0.5), lambda p: {t for t in p if p[t] >= 0.5 * max(p.values())}),
    ],
    ids=["top_k", "min_p"],
)
def test_filters_keep_what_they_say(
    engine: Engine, sampling: SamplingParams, kept: Callable[[dict[int, float]], set[int]]
) -> None:
    needs(engine, "sampling.min_p")
    raw, processed = run_twice(engine, sampling)
    for before, after in zip(tops(raw), tops(processed), strict=True):
        expected = kept({token_id: math.exp(value) for token_id, value in before.items()})
        assert len(expected) < TOP_COUNT
        assert after.keys() == expected
    check_shifts(raw, processed, lambda _token_id, _generated: 0.0)


def test_typical_p_and_top_p_keep_a_share_and_scale_it_up(engine: Engine) -> None:
    needs(engine, "sampling.typical_p")
    for sampling in (
        SamplingParams(temperature=1.0, seed=3, typical_p=0.08),
        SamplingParams(temperature=1.0, seed=3, top_p=0.1),
    ):
        raw, processed = run_twice(engine, sampling)
        for after in tops(processed):
            assert len(after) < TOP_COUNT
            assert sum(map(math.exp, after.values())) == pytest.approx(1.0, rel=1e-4)
        if sampling.typical_p == 1.0:  # what is typical need not be among the likeliest
            check_shifts(raw, processed, lambda _token_id, _generated: 0.0)


def test_banned_tokens_are_taken_out_and_the_rest_keeps_its_proportions(engine: Engine) -> None:
    needs(engine, "sampling.banned_words")
    free, _ = run_twice(engine, GREEDY)
    banned = tuple(sorted(set(free.generated)))
    raw, processed = run_twice(
        engine, SamplingParams(temperature=0.0, banned_text=BannedText(state_count=0, token_ids=banned))
    )
    assert not set(raw.generated) & set(banned)
    assert all(not position.keys() & set(banned) for position in tops(processed))
    check_shifts(raw, processed, lambda _token_id, _generated: 0.0)


def test_a_watermark_raises_the_green_tokens_by_its_strength(engine: Engine) -> None:
    needs(engine, "watermark")
    mark = Watermark(key=987654321, gamma=0.4, delta=1.25)
    raw, processed = run_twice(engine, SamplingParams(temperature=0.0, watermark=mark))

    def shift(token_id: int, generated: tuple[int, ...]) -> float:
        before = (*PROMPT, *generated)[-1]
        green = is_green(token_id, previous_token_id=before, key=mark.key, threshold=threshold_of(mark.gamma))
        return mark.delta * green

    check_shifts(raw, processed, shift)


def test_a_constraint_holds_and_ends_the_text(engine: Engine) -> None:
    needs(engine, "constraint")
    driver = PlanDriver(engine)
    driver.grammar = "start: /(ab|ba){2,3}!/"
    rules = {"end_of_sequence_token_ids": (2,)}
    jobs = [
        driver.submit(PROMPT, 30, sampling=SamplingParams(temperature=2.0, seed=seed), **rules) for seed in range(4)
    ]
    cut = driver.submit(PROMPT, 3, **rules)
    driver.step()
    driver.grammar = ""
    free = driver.submit(PROMPT, COUNT)
    driver.run()
    for job in jobs:
        assert job.end is RowEnd.END_OF_SEQUENCE
        text = bytes(job.generated[:-1]).decode()
        assert text.endswith("!")
        assert text[:-1].replace("ab", "").replace("ba", "") == ""
    assert (len(cut.generated), cut.end) == (3, RowEnd.TOKEN_LIMIT)
    alone = PlanDriver(engine)
    engine.reset()
    same = alone.submit(PROMPT, COUNT)
    alone.run()
    assert free.generated == same.generated


def test_guesses_change_no_token(create: Callable[..., Engine], engine: Engine) -> None:
    assert "speculation" not in engine.description.supported_fields, "nobody asked for it"
    try:
        guessing = create(speculation="ngram")
    except StartupError:
        pytest.skip("not offered")
    assert "speculation" in guessing.description.supported_fields
    asked = [
        GREEDY,
        SamplingParams(temperature=0.0, logit_bias=((41, 9.0), (45, 9.0), (77, 8.9)), frequency_penalty=0.01),
        SamplingParams(temperature=0.2, seed=4, logit_bias=((41, 30.0),)),
        SamplingParams(temperature=1.0, seed=5, repetition_penalty=1.1),
    ]
    told = []
    for each, may_draft in ((engine, False), (guessing, True)):
        driver = PlanDriver(each, may_draft=may_draft)
        jobs = [driver.submit(PROMPT, 40, sampling=sampling, logprobs=RAW) for sampling in asked]
        driver.run()
        told.append([job.generated for job in jobs])
        assert (driver.drafted_count > 0) is may_draft
    assert told[0] == told[1]
