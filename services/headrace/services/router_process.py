"""`headrace router` and `headrace serve`: a router alone, or one that starts its shards itself."""

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path

from headrace.contract.clock import MonotonicClock
from headrace.contract.errors import StartupError
from headrace.router.admission import AdmissionLimits
from headrace.router.model_card import load_model_card, load_tokenizer
from headrace.router.pipeline import ServedModel
from headrace.router.replica import SchedulingOptions
from headrace.router.validation import RequestLimits
from headrace.services import event_loop
from headrace.services.address import parse_address
from headrace.services.channel_options import ServerLimits
from headrace.services.grpc_server import DrainTimes
from headrace.services.log import configure, report
from headrace.services.model_source import default_name, resolve_model
from headrace.services.router_app import RouterApp, RouterOptions
from headrace.services.settings import RouterCoreSettings, RouterSettings, ServeSettings, ShardEngineSettings
from headrace.services.settings_loader import load_settings
from headrace.services.shard_connector import ShardConnector
from headrace.services.shard_supervisor import ShardSupervisor, shard_command
from headrace.services.shutdown import Shutdown

SHARD_MESSAGE_SIZE_LIMIT_BYTES = 64 * 2**20
"""A plan that admits many long prompts is larger than any message of a client."""


def main(arguments: Sequence[str]) -> int:
    """Runs `headrace router` until it is told to end; returns the process's exit status."""
    settings = load_settings("router", RouterSettings, arguments)
    configure(level=settings.log_level, style=settings.log_format)
    shards = [tuple(addresses.split("+")) for addresses in settings.shard]
    return event_loop.run(run_router(settings, shards, supervisor=None))


def main_serve(arguments: Sequence[str]) -> int:
    """Runs `headrace serve` until it is told to end; returns the process's exit status."""
    settings = load_settings("serve", ServeSettings, arguments)
    configure(level=settings.log_level, style=settings.log_format)
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        addresses = [f"unix:{Path(folder) / f'shard-{number}.sock'}" for number in range(settings.replicas)]
        commands = [shard_command(*shard_arguments(settings, listen=address)) for address in addresses]
        supervisor = ShardSupervisor(commands, clock=MonotonicClock())
        return event_loop.run(run_router(settings, [(address,) for address in addresses], supervisor=supervisor))


def shard_arguments(settings: ServeSettings, *, listen: str) -> list[str]:
    """Returns the flags of a shard that `headrace serve` starts."""
    arguments = [f"--listen={listen}"]
    for name in ShardEngineSettings.model_fields:
        value = getattr(settings, name)
        if value is None or name in {"config", "insecure"}:
            continue
        values = value if isinstance(value, tuple) else (value,)
        arguments += [f"--{name.replace('_', '-')}={item}" for item in values]
    return arguments


async def run_router(
    settings: RouterCoreSettings, shards: Sequence[tuple[str, ...]], *, supervisor: ShardSupervisor | None
) -> int:
    """Serves until a signal comes, then drains.

    Raises:
        StartupError: the model or the address is wrong.
    """
    try:
        address = parse_address(settings.listen)
    except ValueError as error:
        raise StartupError(f"--listen: {error}") from error
    shutdown = Shutdown()
    async with AsyncExitStack() as stack:
        if supervisor is not None:
            # First, since a shard takes longer to start than the router.
            shard_runner = asyncio.ensure_future(supervisor.run())
            stack.push_async_callback(_end_task, shard_runner)
        executor = stack.enter_context(ThreadPoolExecutor(settings.tokenizer_threads, thread_name_prefix="tokenizer"))
        model = await asyncio.get_running_loop().run_in_executor(executor, load_served_model, settings)
        app = RouterApp(
            model=model,
            options=router_options(settings),
            connector=ShardConnector(message_size_limit_bytes=SHARD_MESSAGE_SIZE_LIMIT_BYTES),
            executor=executor,
            clock=MonotonicClock(),
            report=report,
        )
        bound = await app.start([address])
        runner = asyncio.ensure_future(app.run(shards))
        stack.push_async_callback(_end_task, runner)
        ready = asyncio.ensure_future(_announce(app, model.card.name, bound))
        stack.push_async_callback(_end_task, ready)
        ending = asyncio.ensure_future(shutdown.requested.wait())
        await asyncio.wait([ending, runner], return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if runner.done():
            await app.server.stop()
            runner.result()
        await app.drain(shutdown.hurry)
    return 0


def load_served_model(settings: RouterCoreSettings) -> ServedModel:
    """Reads all that the router needs of a model: everything but the weights.

    Raises:
        StartupError: the model cannot be found or read.
    """
    source = resolve_model(settings.model, revision=settings.revision)
    card = load_model_card(source, settings.served_model_name or default_name(settings.model))
    context = card.context_token_count
    if isinstance(settings, ServeSettings) and settings.context_token_count:
        context = min(context, settings.context_token_count)
    return ServedModel(
        card=card,
        tokenizer=load_tokenizer(source),
        template=card.compile_chat_template(),
        limits=RequestLimits(
            context_token_count=context, prompt_token_count=min(settings.prompt_token_limit or context, context - 1)
        ),
    )


def router_options(settings: RouterCoreSettings) -> RouterOptions:
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
        server=ServerLimits(message_size_limit_bytes=settings.message_size_limit_bytes),
        drain=DrainTimes(propagation_s=settings.propagation_s, timeout_s=settings.drain_timeout_s),
        replay_timeout_s=settings.replay_timeout_s,
        stall_timeout_s=settings.stall_timeout_s,
        allows_remote_plaintext=settings.insecure,
    )


async def _announce(app: RouterApp, model: str, addresses: Sequence[str]) -> None:
    """Prints the one line that a person or a script waits for."""
    await app.wait_serving()
    sys.stdout.write(f"headrace serves {model} on {', '.join(addresses)}\n")
    sys.stdout.flush()


async def _end_task(task: "asyncio.Future[None]") -> None:
    task.cancel()
    await asyncio.wait([task])
