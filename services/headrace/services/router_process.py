"""`headrace router` and `headrace serve`: a router alone, or one that starts its shards itself."""

import asyncio
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from headrace.contract.clock import MonotonicClock
from headrace.contract.errors import StartupError
from headrace.router.admission import AdmissionLimits
from headrace.router.model_card import load_model_card, load_tokenizer
from headrace.router.pipeline import ServedModel
from headrace.router.replica import SchedulingOptions
from headrace.router.validation import RequestLimits
from headrace.services import event_loop
from headrace.services.address import Address, TcpAddress, UnixAddress, parse_address
from headrace.services.channel_options import SHARD_MESSAGE_SIZE_LIMIT_BYTES, ServerLimits
from headrace.services.grpc_poller import considerate_poller
from headrace.services.grpc_server import DrainTimes
from headrace.services.log import Event, configure, logger, report
from headrace.services.model_source import default_name, resolve_model
from headrace.services.patient_collector import patient_collector
from headrace.services.private_folder import private_folder
from headrace.services.processors import format_processors, read_processors
from headrace.services.router_app import RouterApp, RouterOptions
from headrace.services.server_tls import ServerTls
from headrace.services.settings import RestSettings, RouterOnlySettings, RouterSettings, ServeSettings, ShardSettings
from headrace.services.settings_loader import load_settings, to_flags
from headrace.services.shard_connector import ShardConnector
from headrace.services.shard_supervisor import ShardSupervisor, shard_command
from headrace.services.shutdown import Shutdown
from headrace.services.sidecar_process import SidecarProcess, sidecar_command
from headrace.services.telemetry.endpoint import MetricsEndpoint, Source, serve_metrics
from headrace.services.telemetry.metric import Metric
from headrace.services.telemetry.router_metrics import ROUTER_METRICS, read_router
from headrace.services.telemetry.tgi_metrics import TGI_METRICS, read_tgi
from headrace.services.telemetry.tracing import trace_process
from headrace.services.thread_plan import NONE, share_processors
from headrace.services.watermark_keys import load_watermarks


def main(arguments: Sequence[str]) -> int:
    """Runs `headrace router` until it is told to end; returns the process's exit status."""
    settings = load_settings(RouterSettings, arguments, os.environ, program="headrace router")
    configure(level=settings.log_level, style=settings.log_format)
    # Tried here, since a router that cannot reach its shards safely had better not start.
    settings.shard_security.credentials(map(parse_address, settings.shard))
    return event_loop.run(run_router(settings, [(address,) for address in settings.shard], supervisor=None))


def main_serve(arguments: Sequence[str]) -> int:
    """Runs `headrace serve` until it is told to end; returns the process's exit status."""
    settings = load_settings(ServeSettings, arguments, os.environ, program="headrace serve")
    configure(level=settings.log_level, style=settings.log_format)
    # Whoever reaches a shard's socket can use the model past the router.
    with private_folder() as folder:
        addresses = [f"unix:{folder / f'shard-{number}.sock'}" for number in range(settings.replica_count)]
        commands = [
            shard_command(
                *to_flags(
                    settings,
                    ShardSettings,
                    listen=address,
                    exit_with_parent=True,
                    metrics_address=shard_metrics_address(settings, number),
                    **processor_share(settings, number),
                )
            )
            for number, address in enumerate(addresses)
        ]
        supervisor = ShardSupervisor(commands, clock=MonotonicClock())
        sidecar = None if settings.rest_listen is None else _sidecar(settings, folder / "router.sock")
        return event_loop.run(
            run_router(settings, [(address,) for address in addresses], supervisor=supervisor, sidecar=sidecar)
        )


@dataclass(frozen=True, slots=True)
class Sidecar:
    """The REST sidecar of a router."""

    process: SidecarProcess
    router_address: Address
    """Where it reaches the router: a socket that nobody else can open."""


def _sidecar(settings: ServeSettings, socket_path: Path) -> Sidecar:
    router_address = UnixAddress(socket_path)
    flags = to_flags(
        settings,
        RestSettings,
        router_address=(str(router_address),),
        listen=settings.rest_listen,
        hostname=None,
        port=None,
        exit_with_parent=True,
        metrics_address=shard_metrics_address(settings, settings.replica_count),
    )
    return Sidecar(SidecarProcess(sidecar_command(*flags), clock=MonotonicClock()), router_address)


async def run_router(
    settings: RouterOnlySettings,
    shards: Sequence[tuple[str, ...]],
    *,
    supervisor: ShardSupervisor | None,
    sidecar: Sidecar | None = None,
) -> int:
    """Serves until a signal comes, then drains.

    Raises:
        StartupError: the model or the address is wrong, or a supervised shard or sidecar cannot start.
    """
    shutdown = Shutdown()
    async with AsyncExitStack() as stack:
        stack.enter_context(considerate_poller())
        stack.enter_context(patient_collector())
        tracing = await stack.enter_async_context(trace_process(settings, default_name="headrace-router"))
        runners: list[asyncio.Future[None]] = []
        if supervisor is not None:
            # First, since a shard takes longer to start than the router.
            runners.append(asyncio.ensure_future(supervisor.run()))
            stack.push_async_callback(_end_task, runners[0])
        executor = stack.enter_context(
            ThreadPoolExecutor(settings.tokenizer_thread_count, thread_name_prefix="tokenizer")
        )
        model = await asyncio.get_running_loop().run_in_executor(executor, load_served_model, settings)
        app = RouterApp(
            model=model,
            options=router_options(settings),
            connector=_connector(settings, model),
            executor=executor,
            clock=MonotonicClock(),
            report=report,
            tracing=tracing,
        )
        await stack.enter_async_context(metrics_endpoint(settings, app))
        bound = await app.start([settings.listen_address, *([] if sidecar is None else [sidecar.router_address])])
        runners.append(asyncio.ensure_future(app.run(shards)))
        stack.push_async_callback(_end_task, runners[-1])
        ready = asyncio.ensure_future(_announce(app, model.card.name, bound[:1]))
        stack.push_async_callback(_end_task, ready)
        if sidecar is not None:
            runners.append(asyncio.ensure_future(sidecar.process.run(ready)))
            stack.push_async_callback(_end_task, runners[-1])
        ending = asyncio.ensure_future(shutdown.wait())
        await asyncio.wait([ending, *runners], return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        for runner in runners:
            if runner.done():
                await app.server.stop()
                runner.result()
        # Both go through the same times, so what the sidecar still takes, the router takes.
        draining = [app.drain(shutdown.hurry)]
        if sidecar is not None:
            draining.append(sidecar.process.drain(shutdown.hurry))
        await asyncio.gather(*draining)
    return 0


def _connector(settings: RouterOnlySettings, model: ServedModel) -> ShardConnector:
    return ShardConnector(
        message_size_limit_bytes=SHARD_MESSAGE_SIZE_LIMIT_BYTES,
        security=settings.shard_security,
        vocabulary=model.vocabulary if model.card.end_of_sequence_token_ids else None,
    )


def metrics_endpoint(
    settings: RouterOnlySettings, app: RouterApp
) -> AbstractAsyncContextManager[MetricsEndpoint | None]:
    """Returns a context manager that answers scrapes, if the settings say where."""
    metrics: list[Metric] = [*ROUTER_METRICS]
    sources: list[Source] = [partial(read_router, app.pipeline, app.server)]
    if settings.tgi_metric_names:
        metrics += TGI_METRICS
        sources.append(partial(read_tgi, app.pipeline))
    return serve_metrics(
        settings.metrics_listen_address, metrics, sources, tls=app.tls, allows_remote_plaintext=settings.insecure
    )


def shard_metrics_address(settings: ServeSettings, number: int) -> str:
    """Returns where a supervised shard answers scrapes: its port follows the router's. Empty for nowhere."""
    address = settings.metrics_listen_address
    if address is None:
        return ""
    # A system that chooses the router's port chooses the shards', too.
    return str(TcpAddress(address.host, address.port and address.port + 1 + number))


def processor_share(settings: ServeSettings, number: int) -> dict[str, int | str]:
    """Returns the settings by which a supervised shard takes its share of the machine.

    Raises:
        StartupError: a list of processors cannot be shared among the shards.
    """
    # One shard decides by itself, and what runs elsewhere needs no processors.
    if settings.replica_count == 1 or settings.device != "cpu":
        return {}
    try:
        plans = share_processors(settings.cpu_binding, settings.thread_count, settings.replica_count, read_processors())
    except ValueError as error:
        raise StartupError(f"cpu_binding: {error}") from error
    plan = plans[number]
    return {"thread_count": plan.count, "cpu_binding": format_processors(plan.processors) or NONE}


def load_served_model(settings: RouterOnlySettings) -> ServedModel:
    """Reads all that the router needs of a model: everything but the weights.

    Raises:
        StartupError: the model cannot be found or read.
    """
    source = resolve_model(settings.model)
    card = load_model_card(source, settings.served_model_name or default_name(settings.model))
    if card.name in settings.adapters:
        raise StartupError(f"an adapter cannot be called {card.name!r}, which is the model's own name")
    context = min(card.context_token_count, settings.context_token_limit or card.context_token_count)
    return ServedModel(
        card=card,
        tokenizer=load_tokenizer(source),
        template=card.compile_chat_template(),
        watermarks=load_watermarks(settings),
        limits=RequestLimits(
            context_token_count=context,
            prompt_token_count=min(settings.prompt_token_limit or context, context - 1),
            completion_count=settings.completion_limit,
            embedding_input_count=settings.embedding_input_limit,
        ),
    )


def router_options(settings: RouterOnlySettings) -> RouterOptions:
    """Returns the settings as the parts of a router take them."""
    return RouterOptions(
        scheduling=SchedulingOptions(
            step_token_limit=settings.step_token_limit,
            step_row_limit=settings.step_row_limit,
            prefill_chunk_token_limit=settings.prefill_chunk_token_limit,
            priority_head_start_s=settings.priority_head_start_s,
            step_timeout_s=settings.step_timeout_s,
        ),
        admission=AdmissionLimits(
            waiting_request_limit=settings.waiting_request_limit, waiting_token_limit=settings.waiting_token_limit
        ),
        server=ServerLimits(
            message_size_limit_bytes=settings.message_size_limit,
            connection_age_limit_s=settings.connection_age_limit_s or None,
        ),
        drain=DrainTimes(propagation_s=settings.propagation_s, timeout_s=settings.drain_timeout_s),
        replay_timeout_s=settings.replay_timeout_s,
        adapters=settings.adapters,
        stall_timeout_s=settings.stall_timeout_s,
        access_file=Path(settings.access_file) if settings.access_file else None,
        shard_security=settings.shard_security,
        tls=ServerTls(settings.server_tls_files) if settings.server_tls_files else None,
        allows_remote_plaintext=settings.insecure,
    )


async def _announce(app: RouterApp, model: str, addresses: Sequence[str]) -> None:
    """Prints the one line that a person or a script waits for."""
    await app.wait_serving()
    if dropped := app.pipeline.capabilities().validator.dropped_defaults():
        logger().warning(Event.MODEL_DEFAULTS_DROPPED, fields=dropped)
    sys.stdout.write(f"headrace serves {model} on {', '.join(addresses)}\n")
    sys.stdout.flush()


async def _end_task(task: "asyncio.Future[None]") -> None:
    task.cancel()
    await asyncio.wait([task])
