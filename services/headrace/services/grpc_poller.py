"""Starts gRPC's own thread so that it does not take the processor from the event loop that it works for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from grpc.aio import init_grpc_aio, shutdown_grpc_aio


@contextmanager
def considerate_poller() -> Iterator[None]:
    """Runs gRPC inside the block, with threads that wait for a pause of the event loop. Use on the loop, before gRPC.

    gRPC's poller thread tells the event loop of each message that was sent. It
    wakes for every single one, and where no processor is idle the kernel lets it
    interrupt the event loop, which is just about to send the next message: two
    switches of threads for each token. Under Linux's policy for batches a thread that
    wakes does not interrupt others. It still runs at once on an idle processor and
    gets its full share of a busy one, and finds several messages when it looks.

    A thread inherits the policy of the one that creates it, so only this moment
    is needed. Without effect where the system has no such policy or forbids it.
    """
    is_batch = _try_policy("SCHED_OTHER", "SCHED_BATCH")
    try:
        init_grpc_aio()
    finally:
        if is_batch:
            _try_policy("SCHED_BATCH", "SCHED_OTHER")
    try:
        yield
    finally:
        shutdown_grpc_aio()


def _try_policy(old: str, new: str) -> bool:
    """Changes how the calling thread is scheduled; returns whether it was so before and could be changed."""
    if not hasattr(os, "SCHED_BATCH") or os.sched_getscheduler(0) != getattr(os, old):
        return False
    try:
        os.sched_setscheduler(0, getattr(os, new), os.sched_param(0))
    except PermissionError:
        return False
    return True
