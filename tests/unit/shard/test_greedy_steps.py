"""Steps that need no more than the likeliest tokens give what steps with all logits give."""

import pytest
import torch
from plan_driver import Job, PlanDriver
from tiny_llama import BROKEN_TOKEN_ID, VOCABULARY_SIZE, tiny_llama_config
from transformers import LlamaForCausalLM

from headrace.contract.sampling import LogprobOptions, SamplingParams
from headrace.shard.engines.native import NativeEngine, load_native_engine
from headrace.shard.engines.native_options import NativeOptions

PROMPTS = [[int(token_id) for token_id in torch.arange(9 + row) * 37 % (VOCABULARY_SIZE - 1)] for row in range(5)]
COMPANY = {
    "nobody": {},
    "a draw": {"sampling": SamplingParams(temperature=1.0, seed=5)},
    "a penalty": {"sampling": SamplingParams(temperature=0.0, repetition_penalty=1.5)},
    "log-probabilities": {"logprobs": LogprobOptions(sampled=True)},
}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NativeEngine:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(7)
    # Widths of whole tiles, so that the fastest operators run where the processor has them.
    model = LlamaForCausalLM(tiny_llama_config(hidden_size=64, num_attention_heads=8, intermediate_size=96)).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight[BROKEN_TOKEN_ID] = torch.nan
    model.save_pretrained(folder)
    options = NativeOptions(model=str(folder), dtype=request.param, block_count=200, block_size=4, thread_count=1)
    return load_native_engine(options, lambda _: None)


def run(engine: NativeEngine, company: dict[str, object]) -> list[Job]:
    engine.reset()
    driver = PlanDriver(engine)
    jobs = [driver.submit(prompt, 20) for prompt in PROMPTS]
    broken = driver.submit([3, BROKEN_TOKEN_ID, 4], 20)
    if company:
        driver.submit(PROMPTS[0], 30, **company)  # type: ignore[arg-type]
    driver.run()
    assert broken.error is not None
    assert broken.error.reason == "LOGITS_NOT_FINITE"
    return jobs


@pytest.mark.parametrize("company", COMPANY.values(), ids=COMPANY.keys())
def test_company_changes_nothing(engine: NativeEngine, company: dict[str, object]) -> None:
    alone = [job.generated for job in run(engine, {})]
    assert [job.generated for job in run(engine, company)] == alone
    assert len({tuple(tokens) for tokens in alone}) > 1
    assert all(job.error is None for job in run(engine, company))
