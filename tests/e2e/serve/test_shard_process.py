"""A shard process on its own says where it is, and leaves no socket behind."""

import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

Launch = Callable[..., AbstractAsyncContextManager[Any]]
READY = re.compile(r"headrace shard takes steps on (\S+)")


async def test_it_says_where_it_is_and_removes_its_socket(launch: Launch, tmp_path: Path) -> None:
    path = tmp_path / "shard.sock"
    async with launch("shard", "m", "--engine=fake", f"--listen=unix:{path}") as shard:
        assert (await shard.wait_output(READY))[1] == f"unix:{path}"
        assert path.is_socket()
        assert await shard.end() == 0
        assert not path.exists()
