"""Runs jobs on llama.cpp, through the functions of its library.

    python llama_cpp_driver.py MODEL.gguf

The library computes batches and leaves it to its caller what is in them. Here
each step holds one token of every running sequence, and the prompts that came
meanwhile in what room is left, as its own server does it.
"""

import ctypes
import sys

import llama_cpp
import numpy as np
from driver import Request, serve, take_stdout

BATCH_TOKEN_LIMIT = 2048
THREAD_COUNT = 2


class Sequence:
    """A request while it runs."""

    def __init__(self, index: int, slot: int, request: Request) -> None:
        self.index = index
        self.slot = slot
        self.todo = list(request["prompt"])
        """Tokens that are not computed yet."""
        self.computed_count = 0
        self.missing_count = request["new_token_count"]


class LlamaCppEngine:
    """One model, and a context made for each shape of a job."""

    def __init__(self, path: str) -> None:
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"{path} cannot be loaded")
        self._vocabulary_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKEN_LIMIT, 0, 1)
        self._context = None
        self._shape = (0, 0)
        self._running: list[Sequence] = []
        self._free_slots: list[int] = []

    def prepare(self, requests: list[Request]) -> None:
        longest = max(len(request["prompt"]) + request["new_token_count"] for request in requests)
        shape = (len(requests), -(-longest // 256) * 256)
        if shape != self._shape:
            self._make_context(*shape)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)  # noqa: FBT003  # a C function
        self._free_slots = list(range(len(requests)))

    def _make_context(self, sequence_count: int, token_count: int) -> None:
        if self._context:
            llama_cpp.llama_free(self._context)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = sequence_count * token_count
        params.n_seq_max = sequence_count
        params.n_batch = BATCH_TOKEN_LIMIT
        params.n_threads = params.n_threads_batch = THREAD_COUNT
        params.kv_unified = False
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._shape = (sequence_count, token_count)

    def add(self, index: int, request: Request) -> None:
        self._running.append(Sequence(index, self._free_slots.pop(0), request))

    @property
    def has_work(self) -> bool:
        return bool(self._running)

    def step(self) -> list[tuple[int, int]]:
        drawn: list[tuple[Sequence, int]] = []
        batch, room, place = self._batch, BATCH_TOKEN_LIMIT, 0
        # Those that decode come first: a prompt must not hold them up.
        for sequence in sorted(self._running, key=lambda sequence: len(sequence.todo) > 1):
            chunk, sequence.todo = sequence.todo[:room], sequence.todo[room:]
            for offset, token_id in enumerate(chunk):
                is_last = not sequence.todo and offset == len(chunk) - 1
                batch.token[place] = token_id
                batch.pos[place] = sequence.computed_count + offset
                batch.n_seq_id[place] = 1
                batch.seq_id[place][0] = sequence.slot
                batch.logits[place] = is_last
                if is_last:
                    drawn.append((sequence, place))
                place += 1
            sequence.computed_count += len(chunk)
            room -= len(chunk)
        batch.n_tokens = place
        if (status := llama_cpp.llama_decode(self._context, batch)) != 0:
            raise SystemExit(f"llama_decode returned {status}")
        for sequence, row in drawn:
            self._draw(sequence, row)
        self._running = [sequence for sequence in self._running if sequence.missing_count]
        return [(sequence.index, 1) for sequence, _ in drawn]

    def _draw(self, sequence: Sequence, row: int) -> None:
        logits = llama_cpp.llama_get_logits_ith(self._context, row)
        pointer = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float))
        sequence.todo = [int(np.ctypeslib.as_array(pointer, (self._vocabulary_size,)).argmax())]
        sequence.missing_count -= 1
        if not sequence.missing_count:
            llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self._context), sequence.slot, -1, -1)
            self._free_slots.append(sequence.slot)


def main() -> int:
    answers = take_stdout()
    engine = LlamaCppEngine(sys.argv[1])
    serve(engine, answers, {"version": llama_cpp.__version__})
    return 0


if __name__ == "__main__":
    sys.exit(main())
