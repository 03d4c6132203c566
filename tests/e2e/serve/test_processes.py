"""What must hold when processes die, drain and start apart from each other."""

import asyncio
import os
import re
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headrace.contract.sampling import SamplingParams as DrawnBy
from headrace.shard.engines.fake_oracle import expected_tokens
from headrace.v1 import generate_service_pb2 as pb
from headrace.v1 import health_service_pb2 as health_pb
from headrace.v1 import router_service_pb2 as router_pb
from headrace.v1.sampling_pb2 import SamplingParams

Launch = Callable[..., AbstractAsyncContextManager[Any]]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SLOW = ("--engine=fake", "--engine-option=step_time_s=0.005")


def prompt(number: int) -> list[int]:
    return [100 + (number * 7919 + index * 31) % 40000 for index in range(40)]


def request_of(number: int, count: int) -> pb.GenerateRequest:
    sampling = SamplingParams(temperature=1.0, seed=7) if number % 2 else SamplingParams(temperature=0.0)
    return pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=prompt(number)),
        sampling=sampling,
        stopping=pb.StoppingRules(max_new_token_count=count),
    )


def oracle(number: int, count: int) -> tuple[int, ...]:
    drawn = DrawnBy(temperature=1.0, seed=7) if number % 2 else None
    return expected_tokens(prompt(number), count, sampling=drawn)


async def tokens_of(call: Any) -> tuple[int, ...]:
    return tuple([token_id async for message in call for token_id in message.delta.token_ids])


async def ended(is_alive: Callable[[int], bool], pid: int) -> None:
    while is_alive(pid):  # noqa: ASYNC110  # a process that is not ours to wait for
        await asyncio.sleep(0.01)


async def test_a_killed_shard_is_restarted_and_every_stream_goes_on(serve: Launch) -> None:
    async with serve("serve", *SLOW) as server:
        streams = [
            asyncio.ensure_future(tokens_of(server.generate.GenerateStream(request_of(n, 200)))) for n in range(16)
        ]
        load = (await server.router.GetLoad(router_pb.GetLoadRequest())).load
        while load.running_count < 16:
            load = (await server.router.GetLoad(router_pb.GetLoadRequest())).load
        (shard,) = server.program.children()
        os.kill(shard, signal.SIGKILL)
        states = set()
        while not all(stream.done() for stream in streams):
            health = await server.health.GetHealth(health_pb.GetHealthRequest())
            states.add(health.router.state)
            await asyncio.sleep(0.005)
        assert states >= {health_pb.HEALTH_STATE_NOT_SERVING, health_pb.HEALTH_STATE_SERVING}
        for number, stream in enumerate(streams):
            assert stream.result() == oracle(number, 200)
        (replica,) = (await server.router.ListReplicas(router_pb.ListReplicasRequest())).replicas
        assert (replica.restart_count, replica.state) == (1, router_pb.REPLICA_STATE_SERVING)
        assert server.program.children() != [shard]
        assert replica.load.leased_block_count == 0


async def test_sigterm_under_load_fails_no_accepted_call(serve: Launch, is_alive: Callable[[int], bool]) -> None:
    async with serve("serve", *SLOW, "--propagation-s=0.5") as server:
        watch = aiter(health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest(service="")))  # type: ignore[arg-type]
        assert (await anext(watch)).status == SERVING
        streams = [
            asyncio.ensure_future(tokens_of(server.generate.GenerateStream(request_of(n, 300)))) for n in range(16)
        ]
        load = (await server.router.GetLoad(router_pb.GetLoadRequest())).load
        while load.running_count < 16:
            load = (await server.router.GetLoad(router_pb.GetLoadRequest())).load
        (shard,) = server.program.children()
        server.program.process.send_signal(signal.SIGTERM)
        assert (await anext(watch)).status == NOT_SERVING
        late = await server.generate.Generate(request_of(50, 3))
        assert tuple(late.completions[0].token_ids) == oracle(50, 3)
        refusals = set()
        while not refusals:
            try:
                await server.generate.Generate(request_of(51, 1))
            except grpc.aio.AioRpcError as error:
                refusals.add(error.code())
        assert refusals == {grpc.StatusCode.UNAVAILABLE}
        assert not all(stream.done() for stream in streams)
        for number, stream in enumerate(streams):
            assert await stream == oracle(number, 300)
        assert await server.program.process.wait() == 0
        await ended(is_alive, shard)


async def test_a_killed_router_leaves_no_shard_behind(serve: Launch, is_alive: Callable[[int], bool]) -> None:
    async with serve("serve", "--engine=fake", "--replica-count=2") as server:
        shards = server.program.children()
        assert len(shards) == 2
        await server.program.end(signal.SIGKILL)
        for shard in shards:
            await ended(is_alive, shard)


async def test_router_and_shard_are_deployed_apart_over_tcp(serve: Launch, launch: Launch) -> None:
    listens = re.compile(r'"addresses": \["(127\.0\.0\.1:\d+)"\]')
    async with launch("shard", "smollm2-135m-instruct", "--engine=fake", "--listen=127.0.0.1:0") as shard:
        address = (await shard.wait_log(listens))[1]
        async with serve("router", f"--shard={address}") as server:
            assert await tokens_of(server.generate.GenerateStream(request_of(1, 30))) == oracle(1, 30)
            assert server.program.children() == []
            assert await server.program.end() == 0
        async with serve("router", f"--shard={address}") as server:
            assert await tokens_of(server.generate.GenerateStream(request_of(2, 30))) == oracle(2, 30)
        assert await shard.end() == 0


async def test_a_second_signal_does_not_wait(serve: Launch) -> None:
    async with serve("serve", *SLOW, "--propagation-s=60") as server:
        call = server.generate.GenerateStream(request_of(1, 4000))
        await anext(aiter(call))
        server.program.process.send_signal(signal.SIGTERM)
        await server.program.wait_log(re.compile("drain_started"))
        server.program.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await tokens_of(call)
        assert caught.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED}
        assert await server.program.process.wait() == 0


MISTAKES = [
    (("serve", "no-such-model"), "no-such-model"),
    (("serve",), "no model is given"),
    (("serve", "m.gguf", "--step-row-limit=many"), "--step-row-limit"),
    (("router", "smollm2-135m-instruct", "--shard=127.0.0.1:1", "--listen=0.0.0.0:0"), "--insecure"),
    (("router", "smollm2-135m-instruct", "--shard=10.1.2.3:1"), "--shard-tls-ca-file"),
    (("router", "smollm2-135m-instruct", "--listen=nowhere"), "--listen"),
    (("shard", "smollm2-135m-instruct", "--engine=fake", "--listen=0.0.0.0:0"), "--insecure"),
    (("router", "smollm2-135m-instruct", "--shard=127.0.0.1:1", "--metrics-address=0.0.0.0:0"), "--insecure"),
    (("shard", "smollm2-135m-instruct", "--engine=fake", "--metrics-address=0.0.0.0:0"), "--insecure"),
    (("rest", "--metrics-address=0.0.0.0:0"), "--insecure"),
    (("shard", "smollm2-135m-instruct", "--engine=magic"), "magic"),
    (("shard", "smollm2-135m-instruct", "--engine=fake", "--engine-option=speed=9"), "speed"),
    (("fly",), "unknown command"),
]


@pytest.mark.parametrize(
    ("arguments", "hint"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
async def test_a_mistake_is_explained_in_one_line(launch: Launch, arguments: tuple[str, ...], hint: str) -> None:
    async with launch(*arguments) as program:
        assert await program.process.wait() == 2
        last = program.log().strip().splitlines()[-1]
        assert hint in last
        assert "Traceback" not in program.log()


async def test_an_unknown_setting_is_named_wherever_it_is(launch: Launch, tmp_path: Path) -> None:
    async with launch("serve", "m", HEADRACE_STEP_ROW_LIMITS="5") as program:
        assert await program.process.wait() == 2
        assert "HEADRACE_STEP_ROW_LIMITS" in program.log()
        assert "HEADRACE_STEP_ROW_LIMIT?" in program.log()
    file = tmp_path / "headrace.toml"
    file.write_text("model = 'm'\nstep_rows = 5\n")
    async with launch("serve", f"--config={file}") as program:
        assert await program.process.wait() == 2
        assert "step_rows" in program.log()
