"""Runs jobs on vLLM for CPUs, in its environment and without its server.

python vllm_driver.py FOLDER
"""

import os
import sys

# As many threads as the others get; by itself it would leave a core to its front end.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "0-1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import vllm
from driver import Request, serve, take_stdout
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine


class VllmEngine:
    """An LLMEngine, stepped."""

    def __init__(self, folder: str) -> None:
        self._engine = LLMEngine.from_engine_args(
            vllm.EngineArgs(model=folder, dtype="bfloat16", max_model_len=4096, max_num_seqs=64, disable_log_stats=True)
        )
        self._indices: dict[str, int] = {}
        self._added_count = 0

    def prepare(self, requests: list[Request]) -> None:
        self._indices.clear()

    def add(self, index: int, request: Request) -> None:
        params = vllm.SamplingParams(
            temperature=0.0,
            max_tokens=request["new_token_count"],
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        request_id = str(self._added_count)
        self._added_count += 1
        self._indices[request_id] = index
        self._engine.add_request(request_id, {"prompt_token_ids": request["prompt"]}, params)

    @property
    def has_work(self) -> bool:
        return self._engine.has_unfinished_requests()

    def step(self) -> list[tuple[int, int]]:
        return [(self._indices[output.request_id], len(output.outputs[0].token_ids)) for output in self._engine.step()]


def main() -> int:
    answers = take_stdout()
    engine = VllmEngine(sys.argv[1])
    serve(engine, answers, {"version": vllm.__version__})
    return 0


if __name__ == "__main__":
    sys.exit(main())
