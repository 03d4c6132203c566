"""Clients are told to connect anew after a while, and no call notices."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc

from headrace.client import AsyncClient, Client
from headrace.shard.engines.fake import FakeOptions
from headrace.v1 import generate_service_pb2 as pb
from headrace.v1.sampling_pb2 import SamplingParams

Deploy = Callable[..., AbstractAsyncContextManager[Any]]
AGE_S = 0.2
TOKEN_COUNT = 80
"""At 5 or 10 ms each, they outlive several connections."""


async def test_a_stream_goes_on_when_its_connection_is_old(deploy: Deploy) -> None:
    async with deploy(engine=FakeOptions(step_time_s=0.01), connection_age_limit_s=AGE_S) as server:
        request = pb.GenerateRequest(
            text="Hello",
            sampling=SamplingParams(temperature=0.0),
            stopping=pb.StoppingRules(max_new_token_count=TOKEN_COUNT),
        )
        expected = (await server.generate.Generate(request)).completions[0].token_ids
        aged = asyncio.ensure_future(server.channel.wait_for_state_change(grpc.ChannelConnectivity.READY))
        token_ids: list[int] = []
        count_when_aged = 0
        async for response in server.generate.GenerateStream(request):
            token_ids.extend(response.delta.token_ids)
            count_when_aged = count_when_aged or (len(token_ids) if aged.done() else 0)
        assert 0 < count_when_aged < TOKEN_COUNT, "the connection was not given up during the stream"
        assert token_ids == expected
        # What begins then takes another connection.
        assert (await server.generate.Generate(request)).completions[0].token_ids == expected


async def test_neither_python_client_notices(deploy: Deploy) -> None:
    async with deploy(engine=FakeOptions(step_time_s=0.005), connection_age_limit_s=AGE_S) as server:
        options: Any = {"max_new_token_count": TOKEN_COUNT, "temperature": 0.0}

        def read_all() -> list[str]:
            with Client(server.address) as client:
                return ["".join(delta.text for delta in client.stream("Hello", **options)) for _ in range(2)]

        async with AsyncClient(server.address) as client:
            whole = (await client.generate("Hello", **options)).text
            reading = asyncio.get_running_loop().run_in_executor(None, read_all)
            streams = [client.stream("Hello", **options) for _ in range(4)]
            texts = await asyncio.gather(*(text_of(stream) for stream in streams))
            assert [*texts, *await reading] == [whole] * 6


async def text_of(stream: Any) -> str:
    async with stream:
        return "".join([delta.text async for delta in stream])
