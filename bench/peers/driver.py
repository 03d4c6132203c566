"""What the drivers of all peers share: a job comes as a line of JSON, the times of its tokens go back as one.

A driver runs in its peer's environment, loads the model once and then serves
jobs until its standard input ends. It uses the standard library alone.

    {"requests": [{"prompt": [1, 2], "new_token_count": 64, "due_s": 0.0}]}  ->  {"token_times_s": [[0.1, 0.2]]}

Its first line says what was loaded: {"ready": {"version": "1.2"}}.
"""

import json
import os
import sys
import time
from collections.abc import Iterable
from typing import Protocol, TypedDict


class Request(TypedDict):
    """One request of a job."""

    prompt: list[int]
    new_token_count: int
    """The end of sequence is ignored."""
    due_s: float
    """When it comes, in seconds from the start of the job."""


class PeerEngine(Protocol):
    """An engine that is stepped from here."""

    def prepare(self, requests: list[Request]) -> None:
        """Gets ready for a job. Its time is not measured."""

    def add(self, index: int, request: Request) -> None:
        """Takes a request in; the next steps compute it greedily."""

    def step(self) -> Iterable[tuple[int, int]]:
        """Computes a step and tells which requests got how many tokens."""

    @property
    def has_work(self) -> bool:
        """Whether a request has not ended."""


def serve(engine: PeerEngine, answers: int, description: dict[str, object]) -> None:
    """Says that the engine is ready, and runs jobs until standard input ends.

    Args:
        engine: What runs them.
        answers: A file descriptor, from `take_stdout`.
        description: What was loaded, for the report.
    """
    with os.fdopen(answers, "w") as out:
        out.write(json.dumps({"ready": description}) + "\n")
        out.flush()
        for line in sys.stdin:
            job = json.loads(line)
            out.write(json.dumps({"token_times_s": run(engine, job["requests"])}) + "\n")
            out.flush()


def take_stdout() -> int:
    """Returns a copy of standard output, and lets whatever libraries print there go to standard error."""
    answers = os.dup(1)
    os.dup2(2, 1)
    return answers


def run(engine: PeerEngine, requests: list[Request]) -> list[list[float]]:
    """Runs a job and returns when the tokens of each request came, in seconds from the start."""
    engine.prepare(requests)
    times_s: list[list[float]] = [[] for _ in requests]
    waiting = sorted(range(len(requests)), key=lambda index: requests[index]["due_s"])
    began_s = time.perf_counter()
    while waiting or engine.has_work:
        now_s = time.perf_counter() - began_s
        while waiting and requests[waiting[0]]["due_s"] <= now_s:
            index = waiting.pop(0)
            engine.add(index, requests[index])
        if not engine.has_work:
            time.sleep(requests[waiting[0]]["due_s"] - now_s)
            continue
        came = engine.step()
        now_s = time.perf_counter() - began_s
        for index, count in came:
            times_s[index].extend([now_s] * count)
    return times_s
