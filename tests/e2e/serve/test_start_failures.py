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


async def test_an_adapter_that_is_not_there_ends_the_deployment(launch: Launch) -> None:
    flags = ("--engine=fake", "--listen=127.0.0.1:0", "--adapter=poet=/nowhere")
    async with launch("serve", "smollm2-135m-instruct", *flags) as program:
        assert await program.process.wait() == 2
        assert program.log().strip().splitlines()[-1] == (
            "headrace serve: cannot load the adapter 'poet': source: "
            "the model server cannot read /nowhere/adapter_config.json: No such file or directory"
        )
        assert "Traceback" not in program.log()
