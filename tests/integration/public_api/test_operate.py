"""What an operator, a mesh and a curious developer find: models, replicas, load, health, reflection, drain."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from peft_folders import write_peft_folder

from headrace.shard.engines.fake import FakeOptions
from headrace.shard.engines.fake_oracle import expected_tokens
from headrace.v1 import generate_service_pb2 as generate_pb
from headrace.v1 import health_service_pb2 as health_pb
from headrace.v1 import router_service_pb2 as pb
from headrace.v1.sampling_pb2 import SamplingParams

Deploy = Callable[..., AbstractAsyncContextManager[Any]]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def request_of(count: int, seed: int = 1) -> generate_pb.GenerateRequest:
    return generate_pb.GenerateRequest(
        token_ids=generate_pb.TokenIds(ids=[100 + seed, 200, 300]),
        sampling=SamplingParams(temperature=0.0),
        stopping=generate_pb.StoppingRules(max_new_token_count=count),
    )


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def test_a_model_tells_its_limits_defaults_and_abilities(deploy: Deploy) -> None:
    async with deploy() as server:
        (model,) = (await server.router.ListModels(pb.ListModelsRequest())).models
        assert (await server.router.GetModel(pb.GetModelRequest(model="test-model"))).model == model
        assert (model.name, model.engine, model.has_chat_template) == ("test-model", "fake", True)
        assert model.limits.vocabulary_size == 49152
        assert (model.limits.context_token_count, model.limits.message_size_bytes) == (4096, 4 * 2**20)
        assert model.default_sampling.HasField("temperature")
        assert "sampling.top_p" in model.supported_fields
        assert "sampling.min_p" not in model.supported_fields
        assert list(model.end_of_sequence_token_ids) == [2]
        assert await code_of(server.router.GetModel(pb.GetModelRequest(model="other"))) is grpc.StatusCode.NOT_FOUND


async def test_replicas_are_added_drained_and_removed(deploy: Deploy) -> None:
    async with deploy(shard_count=2) as server:
        first, second = (await server.router.ListReplicas(pb.ListReplicasRequest())).replicas
        assert {first.state, second.state} == {pb.REPLICA_STATE_SERVING}
        assert first.model == "test-model"
        again = pb.AddReplicaRequest(addresses=first.addresses)
        assert await code_of(server.router.AddReplica(again)) is grpc.StatusCode.ALREADY_EXISTS
        nonsense = pb.AddReplicaRequest(addresses=["nowhere"])
        assert await code_of(server.router.AddReplica(nonsense)) is grpc.StatusCode.INVALID_ARGUMENT
        drained = await server.router.DrainReplica(pb.DrainReplicaRequest(id=first.id))
        assert drained.replica.state == pb.REPLICA_STATE_DRAINING
        for seed in range(5):
            await server.generate.Generate(request_of(3, seed))
        assert (server.stats(0).step_count, server.stats(1).step_count > 0) == (0, True)
        await server.router.RemoveReplica(pb.RemoveReplicaRequest(id=first.id))
        assert (
            await code_of(server.router.RemoveReplica(pb.RemoveReplicaRequest(id=first.id)))
            is grpc.StatusCode.NOT_FOUND
        )
        added = await server.router.AddReplica(pb.AddReplicaRequest(addresses=first.addresses))
        assert added.replica.state == pb.REPLICA_STATE_STARTING
        await server.until(lambda: server.app.replicas.statuses()[1].is_connected)


async def test_the_last_replica_is_not_removed_under_its_requests(deploy: Deploy) -> None:
    async with deploy(engine=FakeOptions(step_time_s=0.002)) as server:
        call = asyncio.ensure_future(server.generate.Generate(request_of(100)))
        await server.until(lambda: server.stats().running_count == 1)
        remove = pb.RemoveReplicaRequest(id="replica-0")
        assert await code_of(server.router.RemoveReplica(remove)) is grpc.StatusCode.FAILED_PRECONDITION
        assert len((await call).completions[0].token_ids) == 100


async def test_load_is_told_once_and_watched(deploy: Deploy) -> None:
    async with deploy() as server:
        await server.generate.Generate(request_of(10))
        load = (await server.router.GetLoad(pb.GetLoadRequest())).load
        assert load.waiting_limit == 1000
        assert load.replicas[0].load.generated_token_count == 10
        assert load.replicas[0].load.total_block_count == FakeOptions().block_count
        interval = Duration()
        interval.FromMilliseconds(50)
        watch = server.router.WatchLoad(pb.WatchLoadRequest(interval=interval))
        reports = [await anext(messages) for messages in [aiter(watch)] for _ in range(3)]
        assert all(report.load.waiting_limit == 1000 for report in reports)
        watch.cancel()
        too_quick = server.router.WatchLoad(pb.WatchLoadRequest(interval=Duration(nanos=1000)))
        assert await code_of(anext(aiter(too_quick))) is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_engine_without_adapters_refuses_them_by_name(deploy: Deploy) -> None:
    async with deploy(engine=FakeOptions(adapter_limit=0)) as server:
        assert not (await server.router.ListAdapters(pb.ListAdaptersRequest())).adapters
        load = server.router.LoadAdapter(pb.LoadAdapterRequest(name="a", source="/nowhere"))
        assert await code_of(load) is grpc.StatusCode.UNIMPLEMENTED
        unload = server.router.UnloadAdapter(pb.UnloadAdapterRequest(name="a"))
        assert await code_of(unload) is grpc.StatusCode.NOT_FOUND


async def test_adapters_come_and_go_while_requests_run(deploy: Deploy, tmp_path: Path) -> None:
    source = str(write_peft_folder(tmp_path / "poet", r=6))
    adapter = pb.Adapter(name="poet", source=source, rank=6)
    order = pb.LoadAdapterRequest(name="poet", source=source)
    async with deploy(shard_count=2) as server:
        request = request_of(5)
        plain = await server.generate.Generate(request)
        request.adapter = "poet"
        assert await code_of(server.generate.Generate(request)) is grpc.StatusCode.NOT_FOUND
        assert (await server.router.LoadAdapter(order)).adapter == adapter
        assert await code_of(server.router.LoadAdapter(order)) is grpc.StatusCode.ALREADY_EXISTS
        assert list((await server.router.ListAdapters(pb.ListAdaptersRequest())).adapters) == [adapter]
        adapted = await server.generate.Generate(request)
        assert adapted.completions[0].token_ids != plain.completions[0].token_ids
        await server.router.UnloadAdapter(pb.UnloadAdapterRequest(name="poet"))
        assert await code_of(server.generate.Generate(request)) is grpc.StatusCode.NOT_FOUND
        assert not (await server.router.ListAdapters(pb.ListAdaptersRequest())).adapters


async def test_an_adapter_that_cannot_be_is_refused(deploy: Deploy) -> None:
    async with deploy() as server:
        for name, source in (("", "/x"), ("poet", ""), ("poet", "/nowhere"), ("test-model", "/x")):
            load = server.router.LoadAdapter(pb.LoadAdapterRequest(name=name, source=source))
            assert await code_of(load) is grpc.StatusCode.INVALID_ARGUMENT
        other = server.router.LoadAdapter(pb.LoadAdapterRequest(name="poet", source="/x", model="other"))
        assert await code_of(other) is grpc.StatusCode.NOT_FOUND


async def test_flushing_makes_the_next_request_compute_all(deploy: Deploy) -> None:
    async with deploy() as server:
        request = generate_pb.GenerateRequest(
            token_ids=generate_pb.TokenIds(ids=list(range(100, 200))),
            stopping=generate_pb.StoppingRules(max_new_token_count=2),
        )
        await server.generate.Generate(request)
        assert (await server.generate.Generate(request)).usage.cached_token_count == 96
        flushed = await server.router.FlushPrefixCache(pb.FlushPrefixCacheRequest())
        assert flushed.flushed_block_count > 0
        assert (await server.generate.Generate(request)).usage.cached_token_count == 0


async def test_health_gives_reasons_and_a_probe_goes_all_the_way(deploy: Deploy) -> None:
    async with deploy(shard_count=2) as server:
        health = await server.health.GetHealth(health_pb.GetHealthRequest())
        assert health.router.state == health_pb.HEALTH_STATE_SERVING
        assert all(check.passed for check in health.router.checks)
        assert [replica.replica.state for replica in health.replicas] == [health_pb.HEALTH_STATE_SERVING] * 2
        probed = [await server.health.Probe(health_pb.ProbeRequest()) for _ in range(2)]
        assert {probe.replica_id for probe in probed} == {"replica-0", "replica-1"}
        assert (probed[0].token_id,) == expected_tokens((0,), 1)
        unknown = server.health.Probe(health_pb.ProbeRequest(replica_id="nobody"))
        assert await code_of(unknown) is grpc.StatusCode.NOT_FOUND
        await server.router.DrainReplica(pb.DrainReplicaRequest(id="replica-0"))
        health = await server.health.GetHealth(health_pb.GetHealthRequest())
        assert health.router.state == health_pb.HEALTH_STATE_DEGRADED


async def test_the_standard_health_service_knows_every_name(deploy: Deploy) -> None:
    async with deploy() as server:
        stub: Any = health_pb2_grpc.HealthStub(server.channel)
        for name in ("", "headrace.v1.GenerateService", "headrace.v1.RouterService", "headrace.v1.HealthService"):
            assert (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status == SERVING
        unknown = stub.Check(health_pb2.HealthCheckRequest(service="nothing"))
        assert await code_of(unknown) is grpc.StatusCode.NOT_FOUND
        await server.router.DrainReplica(pb.DrainReplicaRequest(id="replica-0"))
        watch = aiter(stub.Watch(health_pb2.HealthCheckRequest(service="")))
        while (await anext(watch)).status != NOT_SERVING:
            pass


async def test_reflection_lists_the_services(deploy: Deploy) -> None:
    async with deploy() as server:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(server.channel)
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        answer = await anext(aiter(stub.ServerReflectionInfo(iter([ask]))))
        names = {service.name for service in answer.list_services_response.service}
        assert {"headrace.v1.GenerateService", "headrace.v1.RouterService", "grpc.health.v1.Health"} <= names


async def test_a_drain_fails_no_accepted_call(deploy: Deploy) -> None:
    async with deploy(engine=FakeOptions(step_time_s=0.005), propagation_s=0.3) as server:
        stub: Any = health_pb2_grpc.HealthStub(server.channel)
        watch = aiter(stub.Watch(health_pb2.HealthCheckRequest(service="")))
        assert (await anext(watch)).status == SERVING
        calls = [asyncio.ensure_future(server.generate.Generate(request_of(150, n))) for n in range(8)]
        await server.until(lambda: server.stats().running_count == 8)
        drain = asyncio.ensure_future(server.app.drain(asyncio.Event()))
        assert (await anext(watch)).status == NOT_SERVING
        late = await server.generate.Generate(request_of(5, 50))
        assert len(late.completions[0].token_ids) == 5
        await server.until(lambda: server.app.pipeline.desk.is_refusing)
        assert await code_of(server.generate.Generate(request_of(5))) is grpc.StatusCode.UNAVAILABLE
        for answer in await asyncio.gather(*calls):
            assert len(answer.completions[0].token_ids) == 150
        await drain
