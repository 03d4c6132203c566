"""Adapters on every engine that has them: each row its own, none for the others, and gone when nobody has it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from lora_adapters import save_lora
from plan_driver import PlanDriver

from headrace.contract.adapter import AdapterOrder, LoadedAdapter
from headrace.contract.errors import AdaptersFull, FeatureUnsupported, InvalidRequest, PlanRejected, ShardLost
from headrace.contract.pooling import Pooling, PoolingOptions
from headrace.contract.step import StepPlan
from headrace.shard.engine import Engine
from headrace.shard.worker import Worker

PROMPTS = tuple(tuple(range(first, first + 11)) for first in (3, 40, 90))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two adapters of different ranks and targets."""
    folder = tmp_path_factory.mktemp("adapters")
    return (
        save_lora(folder / "first", seed=1, rank=4),
        save_lora(folder / "second", seed=2, rank=7, targets=("q_proj", "up_proj", "down_proj")),
    )


def load(engine: Engine, source: Path, digest: str = "") -> LoadedAdapter:
    return engine.prepare_adapter(AdapterOrder(source=str(source), digest=digest))()


@pytest.fixture
def digests(engine: Engine, sources: tuple[Path, Path]) -> tuple[str, str]:
    if "adapter" not in engine.description.supported_fields:
        pytest.skip("this engine has no adapters")
    first, second = (load(engine, source) for source in sources)
    assert (first.rank, second.rank) == (4, 7)
    assert first.size_bytes > 0
    return first.digest, second.digest


def alone(engine: Engine, prompt: tuple[int, ...], adapter: str) -> list[int]:
    driver = PlanDriver(engine)
    job = driver.submit(prompt, 8, adapter=adapter)
    driver.run()
    driver.release(job)
    driver.step()
    return job.generated


def restart(engine: Engine, sources: tuple[Path, ...]) -> None:
    engine.reset()
    for source in sources:
        load(engine, source)


def test_a_row_has_its_own_adapter_whatever_the_others_have(
    engine: Engine, digests: tuple[str, str], sources: tuple[Path, Path]
) -> None:
    rows = [(prompt, adapter) for prompt in PROMPTS for adapter in ("", *digests)]
    expected = []
    for prompt, adapter in rows:
        expected.append(alone(engine, prompt, adapter))
        restart(engine, sources)
    driver = PlanDriver(engine, chunk_token_count=3)
    jobs = [driver.submit(prompt, 8, adapter=adapter) for prompt, adapter in rows]
    driver.step()
    driver.preempt(jobs[4])
    driver.run()
    assert [job.generated for job in jobs] == expected
    assert len({tuple(tokens) for tokens in expected}) == len(expected)


def test_a_vector_depends_on_the_adapter(engine: Engine, digests: tuple[str, str]) -> None:
    driver = PlanDriver(engine)
    options = PoolingOptions(pooling=Pooling.MEAN, is_normalized=False, dimension_count=0)
    jobs = [driver.submit_pooled(PROMPTS[0], options) for _ in range(3)]
    jobs[1].adapter = digests[0]
    driver.run()
    assert jobs[0].vector == jobs[2].vector != jobs[1].vector


def test_rows_keep_an_adapter_that_is_dropped(
    engine: Engine, digests: tuple[str, str], sources: tuple[Path, Path]
) -> None:
    expected = alone(engine, PROMPTS[0], digests[0])
    restart(engine, sources)
    driver = PlanDriver(engine)
    job = driver.submit(PROMPTS[0], 8, adapter=digests[0])
    driver.step()
    engine.drop_adapter(digests[0])
    engine.drop_adapter("not there")
    driver.run()
    assert job.generated == expected
    driver.submit(PROMPTS[1], 8, adapter=digests[0])
    with pytest.raises(PlanRejected, match=f"the adapter {digests[0]!r} is not loaded"):
        driver.step()


def test_equal_files_are_loaded_once(
    create: Callable[..., Engine], digests: tuple[str, str], sources: tuple[Path, Path]
) -> None:
    engine = create(adapter_limit=1)
    first, second = sources
    assert load(engine, first) == load(engine, first)
    with pytest.raises(AdaptersFull, match="1 adapters are loaded and adapter_limit is 1"):
        load(engine, second)
    driver = PlanDriver(engine)
    job = driver.submit(PROMPTS[0], 8, adapter=digests[0])
    driver.step()
    engine.drop_adapter(digests[0])
    with pytest.raises(AdaptersFull):
        load(engine, second)
    load(engine, first)
    engine.drop_adapter(digests[0])
    driver.release(job)
    driver.step()
    load(engine, second)


def test_a_folder_that_is_not_what_was_ordered_is_refused(
    engine: Engine, digests: tuple[str, str], sources: tuple[Path, Path], tmp_path: Path
) -> None:
    assert load(engine, sources[0], digests[0]).digest == digests[0]
    with pytest.raises(InvalidRequest, match=r"source: .* holds another adapter than when it was loaded first"):
        load(engine, sources[0], digests[1])
    with pytest.raises(InvalidRequest, match=r"source: .* cannot read .*adapter_config.json"):
        load(engine, tmp_path)


def test_a_reset_drops_every_adapter(engine: Engine, digests: tuple[str, str]) -> None:
    engine.reset()
    driver = PlanDriver(engine)
    driver.submit(PROMPTS[0], 8, adapter=digests[0])
    with pytest.raises(PlanRejected, match="is not loaded"):
        driver.step()


def test_a_worker_loads_between_steps_and_forgets_what_a_reset_overtakes(
    engine: Engine, digests: tuple[str, str], sources: tuple[Path, Path]
) -> None:
    worker = Worker(engine)
    worker.reset().result(timeout=20)
    order = AdapterOrder(source=str(sources[0]))
    loading = worker.load_adapter(order)
    worker.reset()
    try:
        loading.result(timeout=20)
    except ShardLost:
        pass
    else:  # it was quicker than the reset, which then drops it
        worker.submit(StepPlan(step_id=1)).result(timeout=20)
    assert worker.load_adapter(order).result(timeout=20).digest == digests[0]
    worker.drop_adapter(digests[0]).result(timeout=20)
    worker.close()


@pytest.mark.usefixtures("digests")
def test_without_adapters_they_are_refused_by_name(create: Callable[..., Engine], sources: tuple[Path, Path]) -> None:
    engine = create(adapter_limit=0)
    assert "adapter" not in engine.description.supported_fields
    with pytest.raises(FeatureUnsupported, match="adapter"):
        load(engine, sources[0])
    driver = PlanDriver(engine)
    driver.submit(PROMPTS[0], 8, adapter="0123")
    with pytest.raises(PlanRejected, match="this engine has no adapter"):
        driver.step()
