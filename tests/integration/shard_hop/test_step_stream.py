"""Plans cross to the shard and results come back, in order, for one router at a time."""

import asyncio
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from peft_folders import write_peft_folder

from headrace.contract.adapter import AdapterOrder
from headrace.contract.errors import InvalidRequest, PlanRejected, ShardLost, StartupError
from headrace.contract.step import StepPlan
from headrace.internal.v1 import shard_service_pb2 as pb
from headrace.internal.v1.shard_service_pb2_grpc import ShardServiceStub
from headrace.services.channel_options import ServerLimits
from headrace.services.convert_step import plan_to_proto
from headrace.services.shard_connector import ShardConnector
from headrace.shard.engines.fake import FakeEngine

from .conftest import OPTIONS, Shard, admission, run_shard

CONNECTOR = ShardConnector(message_size_limit_bytes=2**20)


def ignore(_detail: str) -> None:
    """Takes progress that the test does not look at."""


def local_tokens(step_count: int) -> list[int]:
    """Returns what the fake engine draws when it is called without any transport."""
    engine = FakeEngine(OPTIONS)
    results = [engine.execute(admission(1))]
    results += [engine.execute(StepPlan(step_id=n)) for n in range(2, step_count + 1)]
    return [token for result in results for token in result.token_ids]


async def test_results_are_those_of_the_engine(shard: Shard) -> None:
    shard.serve()
    engine = await CONNECTOR.connect((shard.address,), ignore)
    assert engine.description == FakeEngine(OPTIONS).description
    tokens = list((await engine.step(admission(1))).token_ids)
    for step_id in range(2, 9):
        tokens += (await engine.step(StepPlan(step_id=step_id))).token_ids
    await engine.aclose()
    assert tokens == local_tokens(8)


async def test_two_plans_are_in_flight(shard: Shard) -> None:
    shard.serve()
    engine = await CONNECTOR.connect((shard.address,), ignore)
    steps = [engine.step(admission(1))]
    tokens: list[int] = []
    for step_id in range(2, 20):
        steps.append(engine.step(StepPlan(step_id=step_id)))
        tokens += (await steps.pop(0)).token_ids
    tokens += (await steps.pop(0)).token_ids
    await engine.aclose()
    assert tokens == local_tokens(19)


async def test_the_server_answers_while_a_step_runs(shard: Shard) -> None:
    shard.serve()
    engine = await CONNECTOR.connect((shard.address,), ignore)
    shard.may_step.clear()
    step = engine.step(admission(1))
    async with grpc.aio.insecure_channel(shard.address) as channel:
        described = await ShardServiceStub(channel).Describe(pb.DescribeRequest(), timeout=5)
    assert described.state == pb.SHARD_STATE_SERVING
    assert not step.done()
    shard.may_step.set()
    await step
    await engine.aclose()


async def test_a_new_stream_takes_over_with_an_empty_batch(shard: Shard) -> None:
    shard.serve()
    first = await CONNECTOR.connect((shard.address,), ignore)
    await first.step(admission(1))
    shard.may_step.clear()
    shard.has_stepped.clear()
    left_behind = first.step(StepPlan(step_id=2))
    await shard.has_stepped.wait()
    connecting = asyncio.create_task(CONNECTOR.connect((shard.address,), ignore))
    lost = await first.wait_lost()
    assert "ABORTED" in lost.message
    assert not connecting.done()  # the running step has to end first
    shard.may_step.set()
    second = await connecting
    with pytest.raises(ShardLost):
        await left_behind
    with pytest.raises(ShardLost):
        await first.step(StepPlan(step_id=3))
    result = await second.step(admission(1))  # the same sequence id is free again
    assert list(result.token_ids) == local_tokens(1)
    await first.aclose()
    await second.aclose()


async def test_a_refused_plan_says_why_and_ends_the_stream(shard: Shard) -> None:
    shard.serve()
    engine = await CONNECTOR.connect((shard.address,), ignore)
    refused = engine.step(StepPlan(step_id=1, released_sequence_ids=(77,)))
    behind = engine.step(StepPlan(step_id=2))
    with pytest.raises(PlanRejected, match="77"):
        await refused
    with pytest.raises(ShardLost):
        await behind
    assert isinstance(await engine.wait_lost(), ShardLost)
    await engine.aclose()
    again = await CONNECTOR.connect((shard.address,), ignore)
    assert list((await again.step(admission(1))).token_ids) == local_tokens(1)
    await again.aclose()


async def test_a_crash_of_the_engine_keeps_its_detail_in_the_log(shard: Shard) -> None:
    shard.serve()
    engine = await CONNECTOR.connect((shard.address,), ignore)
    shard.failure = RuntimeError("secret detail")
    with pytest.raises(ShardLost, match="INTERNAL") as caught:
        await engine.step(admission(1))
    assert "secret" not in caught.value.message
    await engine.aclose()


async def test_a_closed_stream_is_lost_and_its_steps_fail(shard: Shard) -> None:
    shard.serve()
    engine = await CONNECTOR.connect((shard.address,), ignore)
    shard.may_step.clear()
    step = engine.step(admission(1))
    await engine.aclose()
    await engine.aclose()
    with pytest.raises(ShardLost):
        await step
    assert isinstance(await engine.wait_lost(), ShardLost)


async def test_steps_of_a_closed_stream_do_not_run(shard: Shard) -> None:
    shard.serve()
    engine = await CONNECTOR.connect((shard.address,), ignore)
    shard.may_step.clear()
    engine.step(admission(1))
    engine.step(StepPlan(step_id=2))
    await shard.has_stepped.wait()
    await engine.aclose()
    await shard.server.calls.wait_idle()
    shard.may_step.set()
    again = await CONNECTOR.connect((shard.address,), ignore)
    assert [plan.step_id for plan in shard.plans] == [1]
    await again.aclose()


async def test_connecting_waits_for_the_engine_and_tells_its_progress(shard: Shard) -> None:
    shard.servicer.note_progress("reads weights, 40 %")
    progress: list[str] = []
    told = asyncio.Event()

    def note(detail: str) -> None:
        progress.append(detail)
        told.set()

    connecting = asyncio.create_task(CONNECTOR.connect((shard.address,), note))
    await asyncio.wait_for(told.wait(), 5)
    assert not connecting.done()
    shard.serve()
    engine = await asyncio.wait_for(connecting, 5)
    await engine.aclose()
    assert progress[0].endswith("reads weights, 40 %")


async def test_a_shard_that_can_never_start_is_not_waited_for(shard: Shard) -> None:
    shard.servicer.fail("no such file: model.gguf")
    with pytest.raises(StartupError, match=r"no such file: model\.gguf"):
        await CONNECTOR.connect((shard.address,), ignore)


async def test_connecting_waits_for_the_process_too(tmp_path: Path) -> None:
    listen = f"unix:{tmp_path}/late.sock"
    told = asyncio.Event()
    connecting = asyncio.create_task(CONNECTOR.connect((listen,), lambda _detail: told.set()))
    await asyncio.wait_for(told.wait(), 5)
    async with run_shard(listen) as shard:
        shard.serve()
        engine = await asyncio.wait_for(connecting, 10)
        assert (await engine.step(admission(1))).step_id == 1
        await engine.aclose()


async def test_giving_up_to_connect_leaves_nothing_behind(tmp_path: Path) -> None:
    told = asyncio.Event()
    connecting = asyncio.create_task(CONNECTOR.connect((f"unix:{tmp_path}/never",), lambda _detail: told.set()))
    await asyncio.wait_for(told.wait(), 5)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("addresses", [("127.0.0.1:1", "127.0.0.1:2"), ("127.0.0.1",), ()])
async def test_what_cannot_be_a_replica_is_refused_at_once(addresses: tuple[str, ...]) -> None:
    with pytest.raises(StartupError):
        await CONNECTOR.connect(addresses, ignore)


async def test_a_step_before_the_engine_is_ready_is_unavailable(shard: Shard) -> None:
    async with grpc.aio.insecure_channel(shard.address) as channel:
        call = ShardServiceStub(channel).Step(iter(()))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "grpc-retry-pushback-ms" in dict(caught.value.trailing_metadata())


async def test_a_plan_over_the_size_limit_is_lost_with_the_limit_named(tmp_path: Path) -> None:
    async with run_shard(f"unix:{tmp_path}/small.sock", ServerLimits(message_size_limit_bytes=4096)) as shard:
        shard.serve()
        engine = await CONNECTOR.connect((shard.address,), ignore)
        with pytest.raises(ShardLost, match="4096"):
            await engine.step(StepPlan(step_id=1, held_rows=tuple(range(10_000))))
        await engine.aclose()


async def test_an_unload_does_not_overtake_the_plans_before_it(shard: Shard, tmp_path: Path) -> None:
    shard.serve()
    engine = await CONNECTOR.connect((shard.address,), ignore)
    source = str(write_peft_folder(tmp_path / "poet"))
    loaded = await engine.load_adapter(AdapterOrder(source=source))
    assert (loaded.rank, await engine.load_adapter(AdapterOrder(source=source, digest=loaded.digest))) == (4, loaded)
    shard.may_step.clear()
    plan = admission(1)
    step = engine.step(replace(plan, admitted=(replace(plan.admitted[0], adapter=loaded.digest),)))
    unloading = asyncio.ensure_future(engine.unload_adapter(loaded.digest))
    await shard.has_stepped.wait()
    assert not unloading.done()
    shard.may_step.set()
    assert (await step).token_counts == (1,)
    await unloading
    other = replace(plan.admitted[0], sequence_id=2, adapter=loaded.digest)
    with pytest.raises(PlanRejected, match="is not loaded"):
        await engine.step(StepPlan(step_id=2, admitted=(other,)))
    await engine.aclose()


async def test_what_is_wrong_with_an_adapter_comes_back_by_name(shard: Shard, tmp_path: Path) -> None:
    shard.serve()
    engine = await CONNECTOR.connect((shard.address,), ignore)
    with pytest.raises(InvalidRequest, match="the model server cannot read") as caught:
        await engine.load_adapter(AdapterOrder(source=str(tmp_path)))
    assert caught.value.violations[0].field == "source"
    await engine.aclose()
    with pytest.raises(ShardLost):
        await engine.load_adapter(AdapterOrder(source=str(tmp_path)))
    with pytest.raises(ShardLost):
        await engine.unload_adapter("0123")


async def test_bytes_that_are_no_plan_end_the_stream_after_the_plans_before_them(shard: Shard) -> None:
    shard.serve()
    async with grpc.aio.insecure_channel(shard.address) as channel:
        call = channel.stream_stream("/headrace.internal.v1.ShardService/Step")()
        await call.write(plan_to_proto(admission(1)).SerializeToString())
        await call.write(b"\xff\xff")
        answer = pb.StepResponse.FromString(await call.read())
        assert answer.step_id == 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(call.read(), 10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
