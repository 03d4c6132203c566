"""How late an event loop runs what is due."""

import asyncio
from typing import Final

from headrace.contract.histogram import Histogram

LAG_BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Buckets for the lateness."""

PROBE_INTERVAL_S: Final = 0.25


class LoopLagProbe:
    """Sets itself a timer again and again and notes how late it comes: a few microseconds, four times a second."""

    def __init__(self) -> None:
        self.lag_s: Final = Histogram(LAG_BOUNDS_S)

    async def run(self) -> None:
        """Probes until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + PROBE_INTERVAL_S
            await asyncio.sleep(PROBE_INTERVAL_S)
            self.lag_s.observe(max(loop.time() - due_s, 0.0))
