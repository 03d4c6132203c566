"""Turns constraints into grammars that are known to compile, in a process that may die of one."""

import json
import os
import select
import subprocess
import sys
import time
import weakref
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from headrace.contract.errors import InvalidRequest
from headrace.contract.generation import Constraint
from headrace.contract.vocabulary import Vocabulary
from headrace.router.constraint_notation import constraint_field

ANSWER_TIMEOUT_S = 5.0
"""After which the process is ended: some limit of the library did not hold."""

START_TIMEOUT_S = 60.0
"""The same for its first answer, before which it reads the vocabulary."""

_KEPT_COUNT = 512
"""Answers that are kept. A grammar is hardly longer than its text."""

_READ_SIZE_BYTES = 1 << 16


class ConstraintCompiler:
    """Compiles the constraints of requests for one model. Nothing is started before the first.

    `executor` runs `compile`, on one thread: a request waits for those before
    it, each of them bounded in time, and the event loop for none.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="constraints")
        """Where to call `compile`."""
        self._answers: OrderedDict[Constraint, dict[str, str]] = OrderedDict()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[..., ConstraintCompiler] | None = None

    def compile(self, constraint: Constraint, field: str = "") -> str:
        """Returns the grammar of a constraint without violations. Blocks; use on `executor`.

        `field` is the path of what it was made of, by default that of the constraint itself.

        Raises:
            InvalidRequest: it is no valid constraint, nothing belongs to it, or it is too large; with the reason.
        """
        answer = self._answers.get(constraint)
        if answer is None:
            answer = self._ask(constraint)
            if not answer.get("is_late"):
                self._keep(constraint, answer)
        else:
            self._answers.move_to_end(constraint)
        if "grammar" not in answer:
            raise InvalidRequest.of(field or constraint_field(constraint.kind), answer["reason"])
        return answer["grammar"]

    def close(self) -> None:
        """Ends the process. Safe to repeat; the next constraint starts another."""
        if self._end is not None:
            self._end()
        self._process = None

    def _keep(self, constraint: Constraint, answer: dict[str, str]) -> None:
        self._answers[constraint] = answer
        while len(self._answers) > _KEPT_COUNT:
            self._answers.popitem(last=False)

    def _ask(self, constraint: Constraint) -> dict[str, str]:
        timeout_s = ANSWER_TIMEOUT_S
        if self._process is None:
            timeout_s = START_TIMEOUT_S
            self._process = self._start()
        process = self._process
        request = json.dumps([constraint.kind.value, constraint.text, constraint.opening])
        line = b""
        try:
            _write(process, request)
            line = _read_line(process, timeout_s)
        except BrokenPipeError:
            # It died between two constraints, and says so here.
            pass
        except TimeoutError:
            self.close()
            return {"reason": f"could not be compiled within {timeout_s:g} s", "is_late": "yes"}
        if not line.endswith(b"\n"):
            self.close()
            return {"reason": "is too deep or too large to be compiled"}
        answer: dict[str, str] = json.loads(line)
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "headrace.router.grammar_process"]
        process = subprocess.Popen(  # noqa: S603  # our own module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._end = weakref.finalize(self, _end_process, process)
        vocabulary = self._vocabulary
        tokens = [token.decode("latin-1") for token in vocabulary.token_bytes]
        ends = vocabulary.end_of_sequence_token_ids
        _write(process, json.dumps({"tokens": tokens, "special": vocabulary.special_token_ids, "ends": ends}))
        return process


def _end_process(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        try:
            pipe.close()
        except BrokenPipeError:
            continue  # what it had not read is lost, and nobody wants it


def _write(process: subprocess.Popen[bytes], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line.encode() + b"\n")
    process.stdin.flush()


def _read_line(process: subprocess.Popen[bytes], timeout_s: float) -> bytes:
    """Returns a line, cut short if the process ended.

    Raises:
        TimeoutError: none came in time.
    """
    assert process.stdout is not None
    descriptor, deadline_s = process.stdout.fileno(), time.monotonic() + timeout_s
    line = b""
    while not line.endswith(b"\n"):
        left_s = max(0.0, deadline_s - time.monotonic())
        if not select.select([descriptor], [], [], left_s)[0]:
            raise TimeoutError
        data = os.read(descriptor, _READ_SIZE_BYTES)
        if not data:
            break
        line += data
    return line
