import asyncio
import time

from headrace.services.telemetry.loop_lag import PROBE_INTERVAL_S, LoopLagProbe


async def test_what_holds_the_event_loop_up_is_seen() -> None:
    probe = LoopLagProbe()
    probing = asyncio.create_task(probe.run())
    await asyncio.sleep(0)
    time.sleep(PROBE_INTERVAL_S + 0.1)  # noqa: ASYNC251  # this is what it is to find
    while probe.lag_s.count == 0:  # noqa: ASYNC110  # the probe tells nobody
        await asyncio.sleep(0.01)
    probing.cancel()
    assert probe.lag_s.sum >= 0.1
