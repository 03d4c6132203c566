"""Processes that this one starts: none is left behind, and waiting for one takes no thread."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

from headrace.services.log import Event, logger
from headrace.services.shutdown import Shutdown

STOP_GRACE_S = 10.0
"""How long a process may take to end before it is killed."""

LONELY_GRACE_S = 10.0
"""How long a process may take to end after its parent, which could have killed it."""


def start_child(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Starts a process; its standard input closes when this process ends, however it does."""
    # The subprocess module starts children by vfork: a plain fork would run gRPC's handlers in the child.
    # A session of its own keeps a terminal's Ctrl-C from ending the child before the router has drained.
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603  # our own command


async def exit_of(process: "subprocess.Popen[bytes]") -> None:
    """Waits until a process has ended, without a thread: its pidfd becomes readable then."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    descriptor = os.pidfd_open(process.pid)
    try:
        loop.add_reader(descriptor, lambda: None if ended.done() else ended.set_result(None))
        await ended
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def end_child(process: "subprocess.Popen[bytes]") -> None:
    """Asks a process to end, and kills it if it does not within `STOP_GRACE_S`."""
    process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_GRACE_S):
            await exit_of(process)
    except TimeoutError:
        process.kill()
    finally:
        if process.poll() is None:
            process.kill()


def end_with_parent(shutdown: Shutdown) -> None:
    """Ends this process when standard input closes: the parent holds the other end."""
    loop = asyncio.get_running_loop()
    descriptor = sys.stdin.fileno()

    def on_readable() -> None:
        if os.read(descriptor, 4096):
            return
        loop.remove_reader(descriptor)
        if not shutdown.requested.is_set():
            logger().warning(Event.PARENT_LOST)
        shutdown.request()
        # Nobody is left to kill a shard that hangs in a step.
        watchdog = threading.Timer(LONELY_GRACE_S, os._exit, [1])
        watchdog.daemon = True
        watchdog.start()

    loop.add_reader(descriptor, on_readable)
