"""Every engine makes the same vector of a prompt, however it is cut and whatever runs beside it."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from plan_driver import Job, PlanDriver

from headrace.contract.pooling import Pooling, PoolingOptions
from headrace.contract.step import RowEnd
from headrace.shard.engine import Engine
from headrace.shard.worker import Worker

PROMPT = tuple(40 + (3 * index) % 50 for index in range(23))
OTHER = tuple(90 + (5 * index) % 60 for index in range(9))
MEAN = PoolingOptions(pooling=Pooling.MEAN)
LAST = PoolingOptions(pooling=Pooling.LAST)
BOTH = pytest.mark.parametrize("options", [MEAN, LAST], ids=["mean", "last"])


def values(job: Job) -> NDArray[np.float32]:
    assert job.vector is not None
    assert (job.end, job.generated) == (RowEnd.POOLED, [])
    return np.frombuffer(job.vector, dtype="<f4")


def alone(create: Callable[..., Engine], prompt: tuple[int, ...], options: PoolingOptions) -> NDArray[np.float32]:
    driver = PlanDriver(create())
    job = driver.submit_pooled(prompt, options)
    driver.run()
    return values(job)


def assert_same(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    """Equal but for the rounding of operators, which may depend on the size of a batch."""
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@BOTH
def test_a_vector_has_length_one_and_the_size_of_a_hidden_state(
    create: Callable[..., Engine], options: PoolingOptions
) -> None:
    vector = alone(create, PROMPT, options)
    assert vector.shape == (create().description.hidden_size,)
    assert np.linalg.norm(vector) == pytest.approx(1.0, rel=1e-6)
    assert np.abs(vector - alone(create, OTHER, options)).max() > 0.01


@BOTH
@pytest.mark.parametrize("chunk_token_count", [1, 4, 5, 22])
def test_chunks_do_not_show(create: Callable[..., Engine], options: PoolingOptions, chunk_token_count: int) -> None:
    driver = PlanDriver(create(), chunk_token_count=chunk_token_count)
    job = driver.submit_pooled(PROMPT, options)
    driver.run()
    assert_same(values(job), alone(create, PROMPT, options))


@BOTH
def test_rows_of_every_kind_share_steps(create: Callable[..., Engine], options: PoolingOptions) -> None:
    lonely = PlanDriver(create())
    text = lonely.submit(PROMPT, 12)
    lonely.run()
    driver = PlanDriver(create(), chunk_token_count=4)
    first = driver.submit(PROMPT, 12)
    pooled = [driver.submit_pooled(prompt, options) for prompt in (PROMPT, OTHER, OTHER[:1])]
    other = driver.submit_pooled(PROMPT, LAST)
    second = driver.submit(PROMPT, 12)
    driver.run()
    assert first.generated == second.generated == text.generated
    for job in pooled:
        assert_same(values(job), alone(create, job.prompt, options))
    assert_same(values(other), alone(create, PROMPT, LAST))


@BOTH
def test_a_step_may_be_sent_ahead(engine: Engine, create: Callable[..., Engine], options: PoolingOptions) -> None:
    driver = PlanDriver(engine, chunk_token_count=8, steps_in_flight=2)
    job, text = driver.submit_pooled(PROMPT, options), driver.submit(OTHER, 9)
    worker = Worker(engine)
    driver.run_ahead(worker)
    worker.close()
    assert len(text.generated) == 9
    assert_same(values(job), alone(create, PROMPT, options))


@BOTH
def test_a_row_that_was_set_aside_begins_anew(
    engine: Engine, create: Callable[..., Engine], options: PoolingOptions
) -> None:
    driver = PlanDriver(engine, chunk_token_count=7)
    job, dropped = driver.submit_pooled(PROMPT, options), driver.submit_pooled(OTHER, options)
    driver.step()
    driver.release(dropped)
    driver.preempt(job)
    driver.step()
    driver.preempt(job)
    driver.run()
    assert_same(values(job), alone(create, PROMPT, options))


def test_the_last_state_needs_no_computed_prefix_again(engine: Engine, create: Callable[..., Engine]) -> None:
    driver = PlanDriver(engine)
    owner = driver.submit(PROMPT, 4)
    driver.run()
    job = driver.submit_pooled(PROMPT, LAST, owner=owner)
    assert job.computed_count == 20
    driver.run()
    assert_same(values(job), alone(create, PROMPT, LAST))


@BOTH
def test_numbers_are_cut_before_they_are_scaled(create: Callable[..., Engine], options: PoolingOptions) -> None:
    def asked(*, is_normalized: bool, dimension_count: int) -> NDArray[np.float32]:
        wish = PoolingOptions(pooling=options.pooling, is_normalized=is_normalized, dimension_count=dimension_count)
        return alone(create, PROMPT, wish)

    plain = asked(is_normalized=False, dimension_count=0)
    assert np.linalg.norm(plain) != pytest.approx(1.0, rel=1e-3)
    assert_same(asked(is_normalized=False, dimension_count=5), plain[:5])
    assert_same(asked(is_normalized=True, dimension_count=5), plain[:5] / np.linalg.norm(plain[:5]))
    assert_same(asked(is_normalized=True, dimension_count=0), plain / np.linalg.norm(plain))


@BOTH
def test_a_broken_prompt_fails_alone(
    engine: Engine, create: Callable[..., Engine], broken_token_id: int, options: PoolingOptions
) -> None:
    driver = PlanDriver(engine, chunk_token_count=6)
    good = driver.submit_pooled(PROMPT, options)
    bad = driver.submit_pooled((*OTHER, broken_token_id, 50), options)
    driver.run()
    assert bad.error is not None
    assert (bad.vector, bad.end) == (None, None)
    assert_same(values(good), alone(create, PROMPT, options))
