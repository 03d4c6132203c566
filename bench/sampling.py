"""Measures what each sampling option costs in a step of the example model, next to a batch with plain sampling."""

import argparse
from dataclasses import replace

from harness.decoding_batch import BLOCK_SIZE, Row, decoding_step_s

from headrace.contract.sampling import (
    LengthPenalty,
    LogprobOptions,
    SamplingParams,
    Watermark,
)
from headrace.router.banned_words import BannedWords
from headrace.router.model_card import load_tokenizer
from headrace.services.model_source import resolve_model
from headrace.shard.engine import Engine
from headrace.shard.registry import create_engine

PROMPT_COUNT = 64
WARMUP_COUNT = 8
PLAIN = SamplingParams(temperature=1.0, top_p=0.95)


def cases(model: str) -> dict[str, tuple[SamplingParams, LogprobOptions]]:
    """Returns the batches to compare, by name."""
    tokenizer = load_tokenizer(resolve_model(model))
    banned = BannedWords(tokenizer, tokenizer.vocabulary_size).compile(
        ("river", "mountain", "sea"), include_special_tokens=False
    )
    options: dict[str, dict[str, object]] = {
        "penalties": {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.1},
        "logit bias of 300 tokens": {"logit_bias": tuple((token_id, 0.5) for token_id in range(100, 400))},
        "length penalty": {"length_penalty": LengthPenalty(start_index=2, decay_factor=1.01)},
        "three banned words": {"banned_text": banned},
        "min-p": {"min_p": 0.02},
        "typical-p": {"typical_p": 0.95},
        "watermark": {"watermark": Watermark(key=7, gamma=0.25, delta=2.0)},
    }
    silent = LogprobOptions()
    found = {"greedy": (replace(PLAIN, temperature=0.0), silent), "plain": (PLAIN, silent)}
    found |= {name: (replace(PLAIN, **changes), silent) for name, changes in options.items()}  # type: ignore[arg-type]
    without_mark = {
        name: value for name, changes in options.items() if name != "watermark" for name, value in changes.items()
    }
    found["all of these but the watermark"] = (replace(PLAIN, **without_mark), silent)  # type: ignore[arg-type]
    found["5 log-probabilities"] = (PLAIN, LogprobOptions(sampled=True, top_count=5))
    found["5 log-probabilities, processed"] = (PLAIN, LogprobOptions(sampled=True, top_count=5, processed=True))
    return found


class Bench:
    """An engine with one batch that decodes."""

    def __init__(self, engine: Engine, row_count: int, step_count: int) -> None:
        self._engine = engine
        self._row_count = row_count
        self._step_count = step_count

    def run(self, sampling: SamplingParams, logprobs: LogprobOptions) -> float:
        """Returns the median of the steps' durations in seconds."""
        self._engine.reset()
        return decoding_step_s(
            self._engine,
            [Row(sampling=replace(sampling, seed=index), logprobs=logprobs) for index in range(self._row_count)],
            prompt_token_count=PROMPT_COUNT,
            warmup_count=WARMUP_COUNT,
            step_count=self._step_count,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--row-count", type=int, default=32)
    parser.add_argument("--step-count", type=int, default=30)
    parser.add_argument("--thread-count", type=int, default=2)
    arguments = parser.parse_args()
    engine = create_engine(
        "native",
        {
            "model": str(resolve_model(arguments.model)),
            "block_size": BLOCK_SIZE,
            "block_count": arguments.row_count * 16,
            "thread_count": arguments.thread_count,
        },
    )
    bench = Bench(engine, arguments.row_count, arguments.step_count)
    plain_s = bench.run(PLAIN, LogprobOptions())
    for name, (sampling, logprobs) in cases(arguments.model).items():
        # Each beside a plain batch of its own, since a machine's speed drifts.
        taken_s = bench.run(sampling, logprobs)
        plain_s = min(plain_s, bench.run(PLAIN, LogprobOptions()))
        print(f"{name:<32} {taken_s * 1e3:8.2f} ms {taken_s / plain_s:6.3f} x plain")


if __name__ == "__main__":
    main()
