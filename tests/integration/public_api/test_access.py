"""Keys, roles and tenants as callers meet them, through real calls."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headrace.client import AsyncClient, Forbidden, QueueFull, QuotaExceeded, Unauthenticated, status_code
from headrace.services import gatekeeper
from headrace.services.access_list import hash_key
from headrace.services.key_command import new_key
from headrace.shard.engines.fake import FakeOptions
from headrace.v1 import router_service_pb2 as router_pb

Deploy = Callable[..., AbstractAsyncContextManager[Any]]

KEYS = {name: new_key() for name in ("alice", "bob", "operator")}
LIMITS = """
[tenants.search]
requests_per_minute = 3
[tenants.mail]
concurrent_request_limit = 1
"""


def entry(name: str, tenant: str, roles: str) -> str:
    return f'[keys.{name}]\nsha256 = "{hash_key(KEYS[name]).hex()}"\ntenant = "{tenant}"\nroles = [{roles}]\n'


@pytest.fixture
def access_file(tmp_path: Path) -> Path:
    path = tmp_path / "access.toml"
    path.write_text(
        entry("alice", "search", '"use"') + entry("bob", "mail", '"use"') + entry("operator", "sre", '"operate"')
    )
    return path


def write(path: Path, text: str) -> None:
    path.write_text(text)


def limit(path: Path, limits: str) -> None:
    path.write_text(path.read_text() + limits)


async def texts_of(client: AsyncClient) -> list[str]:
    async with client.stream("hello") as stream:
        return [delta.text async for delta in stream]


def client(server: Any, name: str = "", **options: Any) -> AsyncClient:
    no_retries = (("grpc.enable_retries", 0),)
    return AsyncClient(server.address, key=KEYS.get(name, name), deadline_s=20, channel_options=no_retries, **options)


async def test_a_key_opens_what_its_roles_are_for(deploy: Deploy, access_file: Path) -> None:
    async with (
        deploy(access_file=access_file) as server,
        client(server) as stranger,
        client(server, new_key()) as impostor,
        client(server, "alice") as alice,
        client(server, "operator") as operator,
    ):
        for nobody in (stranger, impostor):
            for attempt in (nobody.generate("hello"), nobody.list_models(), nobody.get_load(), nobody.get_health()):
                with pytest.raises(Unauthenticated) as refused:
                    await attempt
                assert status_code(refused.value) is grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(Unauthenticated):
                await texts_of(nobody)
        assert (await alice.generate("hello", max_new_token_count=3)).text
        assert await alice.list_models()
        with pytest.raises(Forbidden, match="operate") as forbidden:
            await alice.flush_prefix_cache()
        assert status_code(forbidden.value) is grpc.StatusCode.PERMISSION_DENIED
        await operator.flush_prefix_cache()
        assert (await operator.get_load()).replicas
        with pytest.raises(Forbidden, match="use"):
            await operator.generate("hello")
        with pytest.raises(grpc.aio.AioRpcError) as watched:
            await server.router.WatchLoad(router_pb.WatchLoadRequest()).read()
        assert watched.value.code() is grpc.StatusCode.UNAUTHENTICATED
        health = health_pb2_grpc.HealthStub(server.channel)
        status = (await health.Check(health_pb2.HealthCheckRequest())).status  # type: ignore[misc]
        assert status == health_pb2.HealthCheckResponse.SERVING
        assert server.stats().running_count == 0


async def test_a_key_is_withdrawn_without_a_restart(
    deploy: Deploy, access_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gatekeeper, "LOOK_INTERVAL_S", 0.0)
    async with deploy(access_file=access_file) as server, client(server, "alice") as alice:
        async with alice.stream("hello", max_new_token_count=300, ignore_end_of_sequence=True) as stream:
            await anext(aiter(stream))
            write(access_file, entry("bob", "mail", '"use"'))
            with pytest.raises(Unauthenticated):
                await alice.generate("hello")
            async for _ in stream:
                pass
            assert stream.finished.usage.generated_token_count == 300


async def test_tenants_have_limits_of_their_own(deploy: Deploy, access_file: Path) -> None:
    limit(access_file, LIMITS)
    async with (
        deploy(access_file=access_file, engine=FakeOptions(step_time_s=0.002)) as server,
        client(server, "alice") as alice,
        client(server, "bob") as bob,
    ):
        for _ in range(3):
            await alice.tokenize("hello")
        with pytest.raises(QuotaExceeded, match="'search' may have 3 requests per minute") as refused:
            await alice.generate("hello")
        assert status_code(refused.value) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.value.metadata["limit"] == "requests_per_minute"
        assert refused.value.retry_after_s == pytest.approx(20, abs=2)
        async with bob.stream("hello", max_new_token_count=2000, ignore_end_of_sequence=True) as stream:
            await anext(aiter(stream))
            with pytest.raises(QuotaExceeded, match="1 requests at a time"):
                await bob.embed(["hello"], pooling="mean")
        await server.until(lambda: server.app.pipeline.desk.request_count == 0)
        assert (await bob.embed(["hello"], pooling="mean")).embeddings


async def test_generated_tokens_are_charged_while_they_come(deploy: Deploy, access_file: Path) -> None:
    limit(access_file, "[tenants.search]\ntokens_per_minute = 200\n")
    async with deploy(access_file=access_file) as server, client(server, "alice") as alice:
        async with alice.stream("hello", max_new_token_count=3000, ignore_end_of_sequence=True) as stream:
            token_count = 0
            async for delta in stream:
                token_count += len(delta.token_ids)
                if token_count > 300:
                    break
            with pytest.raises(QuotaExceeded, match="200 tokens per minute"):
                await alice.generate("hello")


async def test_who_may_only_use_ends_requests_of_its_tenant_alone(deploy: Deploy, access_file: Path) -> None:
    async with (
        deploy(access_file=access_file, engine=FakeOptions(step_time_s=0.002)) as server,
        client(server, "alice") as alice,
        client(server, "bob") as bob,
        client(server, "operator") as operator,
    ):
        asked: dict[str, Any] = {"max_new_token_count": 3000, "ignore_end_of_sequence": True}
        for ender, is_heard in ((bob, False), (alice, True), (operator, True)):
            running = asyncio.ensure_future(alice.generate("hello", request_id="r", **asked))
            await server.until(lambda: server.stats().running_count == 1)
            assert list(await ender.abort(["r"])) == (["r"] if is_heard else [])
            if not is_heard:
                assert server.stats().running_count == 1
                await alice.abort(["r"])
            await running
            await server.until(lambda: server.app.pipeline.desk.request_count == 0)


async def test_tenants_share_no_prefixes(deploy: Deploy, access_file: Path) -> None:
    prompt = "a prompt that is long enough for several blocks of the cache " * 8
    async with (
        deploy(access_file=access_file) as server,
        client(server, "alice") as alice,
        client(server, "bob") as bob,
    ):
        counts = [
            (await who.generate(prompt, max_new_token_count=1)).usage.cached_token_count
            for who in (alice, alice, bob, bob)
        ]
    assert counts[0] == counts[2] == 0
    assert counts[1] == counts[3] > 0


async def test_a_burst_of_one_tenant_neither_delays_another_nor_fills_its_room(
    deploy: Deploy, access_file: Path
) -> None:
    async with (
        deploy(
            access_file=access_file,
            engine=FakeOptions(step_time_s=0.005),
            step_row_limit=1,
            waiting_request_limit=6,
        ) as server,
        client(server, "alice") as alice,
        client(server, "bob") as bob,
    ):
        ended: list[str] = []

        async def ask(caller: AsyncClient, name: str) -> None:
            await caller.generate("hello", max_new_token_count=20)
            ended.append(name)

        burst = [asyncio.ensure_future(ask(alice, "alice"))]
        await server.until(lambda: server.stats().running_count == 1)
        burst += [asyncio.ensure_future(ask(alice, "alice")) for _ in range(6)]
        await server.until(lambda: server.app.pipeline.admission.waiting_count == 6)
        with pytest.raises(QueueFull):
            await alice.generate("hello")
        await asyncio.gather(ask(bob, "bob"), ask(bob, "bob"), *burst)
    assert sorted(ended) == ["alice"] * 7 + ["bob"] * 2
    assert ended.index("bob") <= 2
    assert ended[4:] == ["alice"] * 5
