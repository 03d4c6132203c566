"""The threads on which a CPU's operators run, each bound to a processor of its own where that was asked for."""

import os
import threading
from collections.abc import Callable
from typing import Final

import torch

from headrace.kernels.dispatch import Kernels

_HERE: Final = threading.local()


def stay_in_inference_mode() -> None:
    """Has torch leave out what only training needs, on the calling thread until it ends.

    A step that had to enter this mode and to leave it again would spend on it what a dozen array operations take.
    """
    # Held by the thread itself: the mode ends where the object does.
    _HERE.mode = torch.inference_mode()
    _HERE.mode.__enter__()


class ComputeThreads:
    """Binds the threads of the thread that runs an engine.

    OpenMP has a pool for each thread that calls operators, of which that thread
    is the first. Threads that a bound one makes inherit its processor, so
    whatever the engine starts for other work has to run before.
    """

    def __init__(self, kernels: Kernels, processors: tuple[int, ...], progress: Callable[[str], None]) -> None:
        """Takes a processor for each thread; none leaves them to the system."""
        self._kernels = kernels
        self._processors = processors
        self._progress = progress

    def adopt(self) -> None:
        """Binds the calling thread and its pool. One that cannot be bound runs where the system puts it."""
        if not self._processors:
            return
        torch.set_num_threads(len(self._processors))
        thread_ids = self._kernels.thread_ids()
        if len(thread_ids) != len(self._processors):
            self._progress(f"the {self._kernels.name} operators run on threads that cannot be bound to processors")
            return
        try:
            for thread_id, processor in zip(thread_ids, self._processors, strict=True):
                os.sched_setaffinity(thread_id, {processor})
        except OSError as error:
            self._progress(f"compute threads cannot be bound to the processors {self._processors}: {error}")
