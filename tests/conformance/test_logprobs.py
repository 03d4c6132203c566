"""Every engine reports log-probabilities for exactly the rows that asked."""

import math

import pytest
from plan_driver import PlanDriver

from headrace.contract.sampling import BannedText, LogprobOptions, SamplingParams
from headrace.shard.engine import Engine

PROMPT = tuple(range(40, 47))


def test_only_rows_that_asked_report(engine: Engine) -> None:
    driver = PlanDriver(engine, chunk_token_count=4)
    silent = driver.submit(PROMPT, 5)
    sampled = driver.submit(PROMPT, 5, logprobs=LogprobOptions(sampled=True))
    top = driver.submit(PROMPT, 5, logprobs=LogprobOptions(sampled=True, top_count=3))
    result = driver.step()
    assert result.logprobs == ()
    result = driver.step()
    assert [report.row for report in result.logprobs] == [1, 2]
    driver.run()
    assert silent.generated == sampled.generated == top.generated
    assert (len(silent.logprobs), len(sampled.logprobs), len(top.logprobs)) == (0, 5, 5)
    assert all(report.top_token_ids == () for report in sampled.logprobs)
    for token_id, plain, report in zip(top.generated, sampled.logprobs, top.logprobs, strict=True):
        assert not report.is_prompt
        assert math.isclose(plain.logprobs[0], report.logprobs[0], rel_tol=1e-4)
        assert report.ranks == (1,)
        assert report.top_token_ids[0] == token_id
        assert len(report.top_token_ids) == len(report.top_logprobs) == 3
        assert list(report.top_logprobs) == sorted(report.top_logprobs, reverse=True)
        assert math.isclose(report.top_logprobs[0], report.logprobs[0], rel_tol=1e-6)
        assert sum(map(math.exp, report.top_logprobs)) <= 1.0 + 1e-6


def test_reports_follow_rows_of_mixed_wishes(engine: Engine) -> None:
    driver = PlanDriver(engine)
    sampling = SamplingParams(temperature=1.5, seed=3)
    jobs = [
        driver.submit(PROMPT, 4, sampling=sampling, logprobs=LogprobOptions(sampled=count > 0, top_count=count))
        for count in (5, 0, 1, 20)
    ]
    driver.run()
    assert [[len(report.top_token_ids) for report in job.logprobs] for job in jobs] == [[5] * 4, [], [1] * 4, [20] * 4]


def test_an_ending_that_is_barred_keeps_its_probability(engine: Engine) -> None:
    """Reports are of the model's own distribution, whatever the draw may not take."""
    driver = PlanDriver(engine)
    free = driver.submit(PROMPT, 1, logprobs=LogprobOptions(sampled=True, top_count=2))
    driver.run()
    barred = driver.submit(
        PROMPT,
        1,
        logprobs=LogprobOptions(sampled=True, top_count=2),
        stop_token_ids=(free.generated[0],),
        min_new_token_count=1,
    )
    driver.run()
    assert barred.generated != free.generated
    if engine.description.engine != "fake":
        assert barred.logprobs[0].ranks == (2,)
        assert barred.logprobs[0].top_token_ids == free.logprobs[0].top_token_ids


def test_processed_reports_are_of_what_the_token_was_drawn_from(engine: Engine) -> None:
    if "output.processed_logprobs" not in engine.description.supported_fields:
        pytest.skip("not offered")
    driver = PlanDriver(engine)
    sampling = SamplingParams(temperature=0.7, seed=9, top_k=4, logit_bias=((50, 3.0),), presence_penalty=0.4)
    raw, processed = (
        driver.submit(PROMPT, 6, sampling=sampling, logprobs=LogprobOptions(sampled=True, top_count=9, processed=kind))
        for kind in (False, True)
    )
    greedy = driver.submit(PROMPT, 6, logprobs=LogprobOptions(sampled=True, top_count=1, processed=True))
    driver.run()
    assert raw.generated == processed.generated
    for own, drawn in zip(raw.logprobs, processed.logprobs, strict=True):
        likeliest = list(map(math.exp, drawn.top_logprobs))
        assert math.isclose(sum(likeliest), 1.0, rel_tol=1e-5)
        assert [value > 0 for value in likeliest] == [True] * 4 + [False] * 5
        assert drawn.logprobs[0] in drawn.top_logprobs
        assert all(math.isfinite(value) for value in own.top_logprobs)
        assert own.logprobs != drawn.logprobs
    plain = driver.submit(PROMPT, 6, logprobs=LogprobOptions(sampled=True, top_count=1))
    driver.run()
    assert [report.logprobs[0] for report in greedy.logprobs] == pytest.approx([r.logprobs[0] for r in plain.logprobs])


def test_a_row_that_may_draw_nothing_fails_alone(engine: Engine) -> None:
    if "sampling.banned_words" not in engine.description.supported_fields:
        pytest.skip("not offered")
    driver = PlanDriver(engine)
    everything = BannedText(state_count=0, token_ids=tuple(range(engine.description.vocabulary_size)))
    barred = driver.submit(PROMPT, 3, sampling=SamplingParams(banned_text=everything))
    other = driver.submit(PROMPT, 3)
    alone = PlanDriver(engine)
    driver.run()
    assert barred.error is not None
    assert (barred.error.reason, barred.generated) == ("NO_TOKEN_LEFT", [])
    engine.reset()
    same = alone.submit(PROMPT, 3)
    alone.run()
    assert other.generated == same.generated


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_prompt_is_reported_token_by_token_in_any_chunks(engine: Engine, chunk: int) -> None:
    options = LogprobOptions(sampled=True, top_count=2, prompt=True)
    whole = PlanDriver(engine)
    expected = whole.submit(PROMPT, 3, logprobs=options)
    whole.run()
    (told, *_) = expected.logprobs
    assert (told.is_prompt, len(told.logprobs), len(told.top_logprobs)) == (True, len(PROMPT) - 1, 2 * len(PROMPT) - 2)
    engine.reset()
    driver = PlanDriver(engine, chunk_token_count=chunk)
    driver.submit(PROMPT[::-1], 6)
    job = driver.submit(PROMPT, 3, logprobs=options)
    only = driver.submit(PROMPT, 3, logprobs=LogprobOptions(prompt=True))
    for _ in range(2):
        driver.step()
    driver.run()
    for found, top_count in ((job, 2), (only, 0)):
        reports = [report for report in found.logprobs if report.is_prompt]
        values = [value for report in reports for value in report.logprobs]
        assert values == pytest.approx(list(told.logprobs), rel=1e-4)
        assert tuple(rank for report in reports for rank in report.ranks) == told.ranks
        tops = tuple(token_id for report in reports for token_id in report.top_token_ids)
        assert tops == told.top_token_ids[: top_count * len(values)]
    assert job.generated == only.generated == expected.generated
    assert [report.is_prompt for report in only.logprobs] == [True] * len(only.logprobs)
