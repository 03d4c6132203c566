"""The native engine generates exactly the tokens that Transformers does, however its batch is put together."""

from pathlib import Path

import pytest
import torch
from parity_prompts import STORY
from plan_driver import Job, PlanDriver
from transformers import PreTrainedModel

from headrace.contract.sampling import LogprobOptions
from headrace.contract.step import RowEnd
from headrace.shard.engines.native import NativeEngine, load_native_engine
from headrace.shard.engines.native_options import NativeOptions
from headrace.shard.gguf_weights import GgufSource
from headrace.shard.worker import Worker

NEW_TOKEN_COUNT = 16
ENDINGS = {"end_of_sequence_token_ids": (2,)}


@pytest.fixture(scope="module")
def loaded(example_model: Path) -> NativeEngine:
    options = NativeOptions(model=str(example_model), block_count=400, dtype="float32", thread_count=2)
    return load_native_engine(options, lambda _: None)


@pytest.fixture(scope="module")
def source(example_model: Path) -> GgufSource:
    return GgufSource(example_model)


@pytest.fixture
def engine(loaded: NativeEngine) -> NativeEngine:
    loaded.reset()
    return loaded


def submit_all(driver: PlanDriver, examples: tuple) -> list[Job]:
    return [driver.submit(example.prompt, NEW_TOKEN_COUNT, **ENDINGS) for example in examples]


def check(jobs: list[Job], examples: tuple) -> None:
    found = [tuple(job.generated) for job in jobs]
    assert found == [example.expected for example in examples]


def test_examples_are_worth_comparing(greedy_examples: tuple) -> None:
    lengths = [len(example.prompt) for example in greedy_examples]
    assert (len(lengths), min(lengths)) == (20, 1)
    assert max(lengths) > 300
    assert any(len(example.expected) < NEW_TOKEN_COUNT for example in greedy_examples), "none ends by itself"


def test_alone(engine: NativeEngine, greedy_examples: tuple) -> None:
    jobs = []
    for example in greedy_examples:
        engine.reset()
        driver = PlanDriver(engine)
        jobs.append(driver.submit(example.prompt, NEW_TOKEN_COUNT, **ENDINGS))
        driver.run()
    check(jobs, greedy_examples)
    ended = [job.end for job in jobs]
    assert set(ended) == {RowEnd.END_OF_SEQUENCE, RowEnd.TOKEN_LIMIT}


def test_all_at_once(engine: NativeEngine, greedy_examples: tuple) -> None:
    driver = PlanDriver(engine)
    jobs = submit_all(driver, greedy_examples)
    driver.run()
    check(jobs, greedy_examples)


def test_in_chunks_while_others_decode(engine: NativeEngine, greedy_examples: tuple) -> None:
    driver = PlanDriver(engine, chunk_token_count=23)
    jobs = []
    for index, example in enumerate(greedy_examples):
        jobs.append(driver.submit(example.prompt, NEW_TOKEN_COUNT, **ENDINGS))
        if index % 4 == 3:
            driver.step()
    driver.run()
    check(jobs, greedy_examples)


def test_preempted(engine: NativeEngine, greedy_examples: tuple) -> None:
    driver = PlanDriver(engine)
    jobs = submit_all(driver, greedy_examples)
    for turn in range(4):
        for _ in range(5):
            driver.step()
        for job in jobs[turn::4]:
            driver.preempt(job)
    driver.run()
    check(jobs, greedy_examples)


def test_two_plans_in_flight(engine: NativeEngine, greedy_examples: tuple) -> None:
    worker = Worker(engine)
    driver = PlanDriver(engine, chunk_token_count=64)
    jobs = submit_all(driver, greedy_examples)
    driver.run_ahead(worker)
    worker.close()
    check(jobs, greedy_examples)


def test_a_prefix_that_another_sequence_computed(engine: NativeEngine, greedy_examples: tuple) -> None:
    stories = [example for example in greedy_examples if example.text.startswith(STORY[:120])]
    assert len(stories) == 4
    driver = PlanDriver(engine)
    longest = max(stories, key=lambda example: len(example.prompt))
    owner = driver.submit(longest.prompt, NEW_TOKEN_COUNT, **ENDINGS)
    driver.run()
    hits = [driver.submit_with_prefix(example.prompt, NEW_TOKEN_COUNT, owner=owner) for example in stories]
    assert all(job.computed_count >= 16 for job in hits)
    assert hits[-1].computed_count > 300
    driver.run()
    check([owner, *hits], (longest, *stories))


def test_log_probabilities(engine: NativeEngine, greedy_examples: tuple, transformers_model: PreTrainedModel) -> None:
    example = greedy_examples[16]
    driver = PlanDriver(engine)
    job = driver.submit(example.prompt, NEW_TOKEN_COUNT, logprobs=LogprobOptions(sampled=True, top_count=5), **ENDINGS)
    driver.run()
    with torch.inference_mode():
        logits = transformers_model(torch.tensor([[*example.prompt, *example.expected]])).logits[0]
    expected = logits[len(example.prompt) - 1 : -1].log_softmax(dim=-1).topk(5)
    found = torch.tensor([report.top_logprobs for report in job.logprobs])
    assert [report.top_token_ids for report in job.logprobs] == [tuple(ids) for ids in expected.indices.tolist()]
    torch.testing.assert_close(found, expected.values, atol=1e-3, rtol=0)


def test_bfloat16_says_nearly_the_same(
    example_model: Path, greedy_examples: tuple, transformers_model: PreTrainedModel
) -> None:
    options = NativeOptions(model=str(example_model), block_count=40, dtype="bfloat16", thread_count=2)
    driver = PlanDriver(load_native_engine(options, lambda _: None))
    example = greedy_examples[18]
    job = driver.submit(example.prompt, 1, logprobs=LogprobOptions(sampled=True))
    driver.run()
    with torch.inference_mode():
        logits = transformers_model(torch.tensor([example.prompt])).logits[0, -1]
    assert driver.engine.description.weight_type == "bfloat16"
    assert abs(logits.log_softmax(dim=-1)[job.generated[0]].item() - job.logprobs[0].logprobs[0]) < 0.3


def test_weights_are_what_transformers_reads(source: GgufSource, transformers_model: PreTrainedModel) -> None:
    expected = dict(transformers_model.state_dict())
    assert source.config.ties_embeddings
    del expected["lm_head.weight"]
    assert set(source.sizes_bytes) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(source.read(name), tensor, atol=1e-6, rtol=0, msg=name)


def test_the_configuration_is_what_transformers_reads(source: GgufSource, transformers_model: PreTrainedModel) -> None:
    found, expected = source.config, transformers_model.config
    assert found.vocabulary_size == expected.vocab_size
    assert found.context_token_count == expected.max_position_embeddings
    assert found.norm_epsilon == expected.rms_norm_eps
    assert found.rotary_base == expected.rope_parameters["rope_theta"]
    assert found.end_of_sequence_token_ids == (expected.eos_token_id,)
