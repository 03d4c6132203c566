"""Starts shard processes, starts them again when they die, and never leaves one behind."""

import asyncio
import sys
from collections.abc import Sequence

from headrace.contract.clock import Clock
from headrace.contract.errors import StartupError
from headrace.services.backoff import Backoff
from headrace.services.child_process import end_child, exit_of, start_child
from headrace.services.cli import EXIT_CANNOT_START
from headrace.services.log import Event, logger

HEALTHY_AFTER_S = 30.0
"""A shard that lived so long did not die of its start: waiting begins anew with the shortest time."""

RESTART_FIRST_S, RESTART_LIMIT_S = 0.1, 30.0


def shard_command(*arguments: str) -> list[str]:
    """Returns the command line of a shard process; `exit_with_parent` has to be among its settings."""
    return [sys.executable, "-m", "headrace.services", "shard", *arguments]


class ShardSupervisor:
    """Keeps shard processes running.

    Each child holds the reading end of a pipe as its standard input and ends
    when that closes, so no way for this process to die leaves it behind.
    """

    def __init__(
        self, commands: Sequence[Sequence[str]], *, clock: Clock, backoff_first_s: float = RESTART_FIRST_S
    ) -> None:
        self._commands = commands
        self._clock = clock
        self._backoff_first_s = backoff_first_s
        self.pids: dict[int, int] = {}
        """Process id of each shard that runs, by its number from 0."""

    async def run(self) -> None:
        """Runs the shards until cancelled; then ends them, politely at first.

        Raises:
            StartupError: a shard says on its first start that it cannot start as it was asked to.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for number, command in enumerate(self._commands):
                    group.create_task(self._keep_running(number, command), name=f"shard {number}")
        except* StartupError as failed:
            raise failed.exceptions[0] from None

    async def _keep_running(self, number: int, command: Sequence[str]) -> None:
        backoff = Backoff(first_s=self._backoff_first_s, limit_s=RESTART_LIMIT_S)
        is_first = True
        while True:
            started_s = self._clock.now()
            exit_code = await self._run_once(number, command)
            if is_first and exit_code == EXIT_CANNOT_START:
                raise StartupError(f"shard {number} cannot start; its own message says why")
            is_first = False
            if self._clock.now() - started_s >= HEALTHY_AFTER_S:
                backoff.reset()
            wait_s = backoff.fail()
            logger().warning(Event.SHARD_EXITED, shard=number, exit_code=exit_code, restart_in_s=wait_s)
            await asyncio.sleep(wait_s)

    async def _run_once(self, number: int, command: Sequence[str]) -> int:
        with start_child(command) as process:
            self.pids[number] = process.pid
            logger().info(Event.SHARD_STARTED, shard=number, pid=process.pid)
            try:
                await exit_of(process)
            except asyncio.CancelledError:
                await end_child(process)
                raise
            finally:
                del self.pids[number]
            return process.wait()
