"""Every engine reports log-probabilities for exactly the rows that asked."""

import math

from plan_driver import PlanDriver

from headrace.contract.sampling import LogprobOptions, SamplingParams
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
