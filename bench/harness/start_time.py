"""How long it takes from the command to the first token."""

import time

from harness.headrace_server import HeadraceServer
from harness.systems import LOGS
from harness.workloads import Request


async def measure_start(model: str, *, round_count: int) -> list[float]:
    """Returns the seconds from the command to the first token at the client, round by round.

    One start goes before them and is not counted: it builds the operators if they are not built.
    """
    LOGS.mkdir(parents=True, exist_ok=True)
    found_s: list[float] = []
    for _ in range(round_count + 1):
        began_s = time.perf_counter()
        server = await HeadraceServer.start(
            model, "--dtype=bfloat16", "--kv-memory=1GiB", log=LOGS / "headrace-start.log"
        )
        try:
            await server.run([Request(prompt=tuple(range(100, 228)), new_token_count=1)])
            found_s.append(time.perf_counter() - began_s)
        finally:
            await server.stop()
    return found_s[1:]
