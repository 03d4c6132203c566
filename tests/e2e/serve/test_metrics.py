"""Under `headrace serve` every process answers Prometheus, each on an endpoint of its own."""

import json
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from scrape import scrape

from headrace.v1 import generate_service_pb2 as pb

Serve = Callable[..., AbstractAsyncContextManager[Any]]


async def test_router_and_shard_count_the_same_steps(serve: Serve) -> None:
    async with serve("serve", "--engine=fake", "--metrics-address=0", "--tgi-metric-names") as server:
        await server.generate.Generate(
            pb.GenerateRequest(text="Hello", stopping=pb.StoppingRules(max_new_token_count=5))
        )
        lines = [json.loads(line) for line in server.program.log().splitlines() if "metrics_served" in line]
        assert all(re.fullmatch(r"127\.0\.0\.1:\d+", line["address"]) for line in lines)
        told = [await scrape(line["address"]) for line in lines]
    [router] = [process for process in told if "headrace_requests_total" in process.names]
    [shard] = [process for process in told if "headrace_shard_ready" in process.names]
    assert router.sum("headrace_generated_tokens_total") == 5
    assert shard.get("headrace_shard_ready") == 1
    assert shard.get("headrace_shard_engine_info", engine="fake", architecture="fake", weight_type="none") == 1
    steps = router.sum("headrace_step_duration_seconds_count", part="forward")
    assert shard.get("headrace_shard_step_duration_seconds_count", part="forward") == steps > 0
    assert router.get("tgi_request_count") == router.get("tgi_request_success") == 1
    assert router.get("tgi_request_generated_tokens_sum") == 5
