"""Runs jobs on OpenVINO GenAI's continuous batching, in its environment.

python openvino_driver.py FOLDER
"""

import sys

import numpy as np
import openvino
import openvino_genai
from driver import Request, serve, take_stdout


class OpenVinoEngine:
    """A ContinuousBatchingPipeline, stepped."""

    def __init__(self, folder: str) -> None:
        scheduling = openvino_genai.SchedulerConfig()
        scheduling.cache_size = 1  # GiB
        scheduling.max_num_batched_tokens = 2048
        scheduling.max_num_seqs = 256
        scheduling.enable_prefix_caching = True
        properties = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": 2}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(folder, scheduling, "CPU", properties)
        self._handles: dict[int, object] = {}
        self._added_count = 0

    def prepare(self, requests: list[Request]) -> None:
        self._handles.clear()

    def add(self, index: int, request: Request) -> None:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = request["new_token_count"]
        config.ignore_eos = True
        config.do_sample = False
        prompt = openvino.Tensor(np.array([request["prompt"]], dtype=np.int64))
        self._handles[index] = self._pipeline.add_request(self._added_count, prompt, config)
        self._added_count += 1

    @property
    def has_work(self) -> bool:
        return bool(self._pipeline.has_non_finished_requests())

    def step(self) -> list[tuple[int, int]]:
        self._pipeline.step()
        came = []
        for index, handle in self._handles.items():
            count = 0
            while handle.can_read():
                (output,) = handle.read().values()
                count += len(output.generated_ids)
            if count:
                came.append((index, count))
        return came


def main() -> int:
    answers = take_stdout()
    engine = OpenVinoEngine(sys.argv[1])
    serve(engine, answers, {"version": openvino_genai.get_version()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
