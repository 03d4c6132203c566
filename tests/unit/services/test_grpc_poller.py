"""gRPC's own threads give way to the event loop, and nothing else changes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from headrace.services import grpc_poller

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="the system has no policy for batches")

# In a process of its own: gRPC starts its threads once, and other tests may have been first.
_PROGRAM = """
import asyncio, os
from headrace.services.grpc_poller import considerate_poller

def policies():
    return {int(thread): os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")}

async def main():
    import grpc
    before = policies()
    with considerate_poller():
        started = {thread: policy for thread, policy in policies().items() if thread not in before}
        async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
            try:
                await channel.unary_unary("/none")(b"", timeout=5.0)
            except grpc.aio.AioRpcError as error:
                code = error.code().name
    print(os.sched_getscheduler(os.getpid()) == os.SCHED_OTHER, set(started.values()) == {os.SCHED_BATCH}, code)

asyncio.run(main())
"""


def test_threads_of_grpc_have_the_policy_for_batches_and_the_event_loop_has_not() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False, timeout=30)
    assert done.stdout.split() == ["True", "True", "UNAVAILABLE"], done.stderr


@contextmanager
def scheduling(monkeypatch: pytest.MonkeyPatch, *, policy: int, is_allowed: bool) -> Iterator[list[int]]:
    """Stands in for the kernel and for gRPC; yields the policies that were asked for."""
    asked: list[int] = []

    def set_policy(_thread: int, wanted: int, _parameters: object) -> None:
        asked.append(wanted)
        if not is_allowed:
            raise PermissionError

    monkeypatch.setattr(os, "sched_getscheduler", lambda _: asked[-1] if asked else policy)
    monkeypatch.setattr(os, "sched_setscheduler", set_policy)
    monkeypatch.setattr(grpc_poller, "init_grpc_aio", lambda: None)
    monkeypatch.setattr(grpc_poller, "shutdown_grpc_aio", lambda: None)
    yield asked


def test_the_policy_comes_back_when_the_threads_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        scheduling(monkeypatch, policy=os.SCHED_OTHER, is_allowed=True) as asked,
        grpc_poller.considerate_poller(),
    ):
        assert asked == [os.SCHED_BATCH, os.SCHED_OTHER]


def test_a_system_that_forbids_it_is_served_without(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        scheduling(monkeypatch, policy=os.SCHED_OTHER, is_allowed=False) as asked,
        grpc_poller.considerate_poller(),
    ):
        assert asked == [os.SCHED_BATCH]


def test_a_policy_that_an_operator_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        scheduling(monkeypatch, policy=os.SCHED_FIFO, is_allowed=True) as asked,
        grpc_poller.considerate_poller(),
    ):
        assert asked == []
