"""`headrace shard`: one process that runs the steps of a model for one router at a time."""

import asyncio
import os
import sys
import uuid
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial

from headrace.contract.errors import StartupError
from headrace.internal.v1 import shard_service_pb2
from headrace.internal.v1.shard_service_pb2_grpc import add_ShardServiceServicer_to_server
from headrace.services import event_loop
from headrace.services.channel_options import SHARD_MESSAGE_SIZE_LIMIT_BYTES, ServerLimits
from headrace.services.child_process import end_with_parent
from headrace.services.exposure import check_shard_listener
from headrace.services.grpc_server import GrpcServer
from headrace.services.log import Event, configure, logger
from headrace.services.model_source import resolve_model
from headrace.services.processors import format_processors, read_processors
from headrace.services.server_tls import ServerTls
from headrace.services.settings import ShardSettings
from headrace.services.settings_loader import load_settings
from headrace.services.shard_servicer import ShardServicer
from headrace.services.shutdown import Shutdown
from headrace.services.telemetry.endpoint import serve_metrics
from headrace.services.telemetry.process_metrics import CALL_METRICS, read_calls
from headrace.services.telemetry.shard_metrics import SHARD_METRICS, read_shard
from headrace.services.telemetry.tracing import trace_process
from headrace.services.thread_plan import ThreadPlan, plan_threads
from headrace.shard.engine import Engine
from headrace.shard.options import OptionValue
from headrace.shard.registry import create_engine
from headrace.shard.worker import Worker


def main(arguments: Sequence[str]) -> int:
    """Runs a shard until it is told to end; returns the process's exit status."""
    settings = load_settings(ShardSettings, arguments, os.environ, program="headrace shard")
    _bound_spinning()
    configure(level=settings.log_level, style=settings.log_format)
    return event_loop.run(run_shard(settings))


def _bound_spinning() -> None:
    """Lets OpenMP threads spin only briefly while they wait for each other, unless the operator decided.

    Read when torch loads. Spinning for long, the default, slows every step several times over when something
    else runs on those cores, such as the router; sleeping at once halves the speed where nothing does, since a
    step has hundreds of parallel regions.
    """
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        os.environ["GOMP_SPINCOUNT"] = "10000"


async def run_shard(settings: ShardSettings) -> int:
    """Serves at once, loads the engine meanwhile, and ends after a signal.

    The shard does not wait for its router at the end: the router drains first,
    and one that is still there replays its requests elsewhere.

    Raises:
        StartupError: the address or the engine's settings are wrong.
    """
    shutdown = Shutdown()
    if settings.exit_with_parent:
        end_with_parent(shutdown)
    async with trace_process(settings, default_name="headrace-shard") as tracing:
        return await _serve(settings, ShardServicer(instance_id=uuid.uuid4().hex, tracing=tracing), shutdown)


async def _serve(settings: ShardSettings, servicer: ShardServicer, shutdown: Shutdown) -> int:
    tls = ServerTls(settings.server_tls_files) if settings.server_tls_files else None
    check_shard_listener(settings.listen_address, tls, allows_remote_plaintext=settings.insecure)
    server = GrpcServer(
        ServerLimits(message_size_limit_bytes=SHARD_MESSAGE_SIZE_LIMIT_BYTES),
        tls=tls,
        allows_remote_plaintext=settings.insecure,
    )
    server.add(
        shard_service_pb2.DESCRIPTOR.services_by_name["ShardService"],
        lambda grpc_server: add_ShardServiceServicer_to_server(servicer, grpc_server),
    )
    sources = (lambda: read_shard(servicer.meter, servicer.engine), partial(read_calls, server.call_meter))
    async with serve_metrics(
        settings.metrics_listen_address,
        (*SHARD_METRICS, *CALL_METRICS),
        sources,
        tls=tls,
        allows_remote_plaintext=settings.insecure,
    ):
        return await _run(settings, servicer, server, shutdown)


async def _run(settings: ShardSettings, servicer: ShardServicer, server: GrpcServer, shutdown: Shutdown) -> int:
    [address] = await server.start([settings.listen_address])
    # Not a context manager: an engine that is still loading must not hold up the end of the process.
    loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
    loading = asyncio.get_running_loop().run_in_executor(loader, _load, settings, _Progress(servicer))
    ending = asyncio.ensure_future(shutdown.requested.wait())
    try:
        waited: list[asyncio.Future[object]] = [loading, ending]  # type: ignore[list-item]  # only ever read
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            os._exit(0)  # torch cannot be interrupted while it loads
        worker = Worker(_loaded(loading, servicer))
        servicer.serve(worker)
        await server.set_serving(is_serving=True)
        logger().info(Event.ENGINE_READY, address=address)
        if not settings.exit_with_parent:
            sys.stdout.write(f"headrace shard takes steps on {address}\n")
            sys.stdout.flush()
        await ending
        await server.stop()
        await _close(worker, loader, shutdown)
        return 0
    finally:
        ending.cancel()
        loader.shutdown(wait=False, cancel_futures=True)
        await server.stop()


async def _close(worker: Worker, executor: Executor, shutdown: Shutdown) -> None:
    """Waits for the running step, unless a second signal says not to."""
    closing = asyncio.get_running_loop().run_in_executor(executor, worker.close)
    hurrying = asyncio.ensure_future(shutdown.wait_hurry())
    await asyncio.wait([closing, hurrying], return_when=asyncio.FIRST_COMPLETED)
    hurrying.cancel()
    if not closing.done():
        os._exit(1)  # a thread that computes cannot be interrupted, and would hold the process


class _Progress:
    """Tells routers and the log what the engine is doing, from whichever thread it does it."""

    def __init__(self, servicer: ShardServicer) -> None:
        self._servicer = servicer
        self._loop = asyncio.get_running_loop()

    def __call__(self, detail: str) -> None:
        self._loop.call_soon_threadsafe(self._servicer.note_progress, detail)
        logger().info(Event.ENGINE_PROGRESSED, detail=detail)


def _loaded(loading: asyncio.Future[Engine], servicer: ShardServicer) -> Engine:
    try:
        return loading.result()
    except StartupError as error:
        servicer.fail(error.message)
        logger().error(Event.ENGINE_FAILED, detail=error.message)
        raise


def _load(settings: ShardSettings, progress: _Progress) -> Engine:
    threads = _plan_threads(settings)
    if settings.engine == "native":
        progress(threads.explain())
    return create_engine(settings.engine, engine_options(settings, threads), progress)


def _plan_threads(settings: ShardSettings) -> ThreadPlan:
    if settings.device != "cpu":
        return ThreadPlan(count=settings.thread_count)
    try:
        return plan_threads(settings.cpu_binding, settings.thread_count, read_processors())
    except ValueError as error:
        raise StartupError(f"cpu_binding: {error}") from error


def engine_options(settings: ShardSettings, threads: ThreadPlan) -> dict[str, OptionValue]:
    """Returns what the engine is told.

    Raises:
        StartupError: the model cannot be found.
    """
    options: dict[str, OptionValue] = {
        "block_size": settings.block_size,
        "row_limit": settings.step_row_limit,
        "token_limit": settings.step_token_limit,
        "adapter_limit": settings.adapter_limit,
    }
    if settings.block_count:
        options["block_count"] = settings.block_count
    if settings.context_token_limit:
        options["context_token_count"] = settings.context_token_limit
    if settings.engine == "native":
        options |= {
            "model": str(resolve_model(settings.model)),
            "dtype": settings.dtype,
            "device": settings.device,
            "kernels": settings.kernels,
            "thread_count": threads.count,
            "processors": format_processors(threads.processors),
            "speculation": settings.speculation,
            "draft_model": str(resolve_model(settings.draft_model)) if settings.draft_model else "",
            "draft_token_limit": settings.draft_token_limit,
            "kv_memory_bytes": int(settings.kv_memory),
            "adapter_memory_bytes": int(settings.adapter_memory),
            "adapter_rank_limit": settings.adapter_rank_limit,
        }
    for text in settings.engine_option:
        name, _, value = text.partition("=")
        options[name] = _value(value)
    return options


def _value(text: str) -> OptionValue:
    """Returns a number where the text is one."""
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text
