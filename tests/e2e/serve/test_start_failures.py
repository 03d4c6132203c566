"""A deployment that cannot start says why and ends."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

Launch = Callable[..., AbstractAsyncContextManager[Any]]


async def test_a_shard_that_cannot_start_ends_the_deployment(launch: Launch) -> None:
    flags = ("--engine=fake", "--engine-option=speed=9", "--listen=127.0.0.1:0")
    async with launch("serve", "smollm2-135m-instruct", *flags) as program:
        assert await program.process.wait() == 2
        lines = program.log().strip().splitlines()
        assert lines[-1] == "headrace serve: shard 0 cannot start; its own message says why"
        assert any(line.startswith("headrace shard: ") and "speed" in line for line in lines)
        assert "Traceback" not in program.log()
