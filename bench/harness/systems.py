"""The systems that are compared: which are installed, and how each is started."""

import contextlib
import os
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from harness import machine
from harness.headrace_server import HeadraceServer
from harness.peer_process import PeerFailed, PeerProcess, clean_environment, python_of
from harness.traces import Trace
from harness.workloads import Request, Workload

PEERS = machine.ROOT / "build" / "peers"
DRIVERS = machine.ROOT / "bench" / "peers"
LOGS = machine.ROOT / "build" / "bench"

__all__ = ["System", "known_keys", "started_systems"]


class Engine(Protocol):
    """What runs a job."""

    async def run(self, requests: Sequence[Request]) -> list[Trace]:
        """Runs a job and returns what became of each request."""

    async def stop(self) -> None:
        """Ends it."""

    @property
    def process_id(self) -> int:
        """Its first process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A system with its model loaded."""

    name: str
    weights: str
    version: str
    engine: Engine

    @property
    def key(self) -> str:
        """The name with the weights."""
        return f"{self.name} ({self.weights})"

    def fits(self, workload: Workload) -> bool:
        """Whether the workload is for these weights."""
        return self.weights == workload.weights


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRecipe:
    """How a peer is started."""

    name: str
    weights: str
    environment: str
    driver: str
    model: Path


RECIPES = (
    PeerRecipe(
        name="openvino", weights="bf16", environment="openvino", driver="openvino_driver.py",
        model=PEERS / "openvino" / "model-fp16",
    ),
    PeerRecipe(
        name="openvino", weights="int8", environment="openvino", driver="openvino_driver.py",
        model=PEERS / "openvino" / "model-int8",
    ),
    PeerRecipe(
        name="llama.cpp", weights="bf16", environment="llama_cpp", driver="llama_cpp_driver.py",
        model=PEERS / "llama_cpp" / "model-bf16.gguf",
    ),
    PeerRecipe(
        name="llama.cpp", weights="int8", environment="llama_cpp", driver="llama_cpp_driver.py",
        model=PEERS / "llama_cpp" / "model-q8_0.gguf",
    ),
    PeerRecipe(
        name="vllm", weights="bf16", environment="vllm", driver="vllm_driver.py", model=PEERS / "model",
    ),
)  # fmt: skip
"""llama.cpp's int8 is Q8_0: eight bits with a scale for each 32 weights. OpenVINO scales each output."""


def known_keys(weights: Collection[str]) -> list[str]:
    """Returns the keys of the peers with these weights, installed or not."""
    return [f"{recipe.name} ({recipe.weights})" for recipe in RECIPES if recipe.weights in weights]


@contextlib.asynccontextmanager
async def started_systems(model: str, weights: Collection[str]) -> AsyncIterator[list[System]]:
    """Starts headrace and every installed peer with these weights, one after the other; ends all of them.

    Raises:
        ProcessEnded: headrace did not start. A peer that does not start is told of and left out.
    """
    LOGS.mkdir(parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        systems: list[System] = []
        for kind in sorted(weights):
            print(f"starting headrace ({kind})", flush=True)
            log = LOGS / f"headrace-{kind}.log"
            weight_format = "auto" if kind == "bf16" else kind
            server = await HeadraceServer.start(
                model,
                "--dtype=bfloat16",
                "--kv-memory=1GiB",
                f"--engine-option=weight_format={weight_format}",
                log=log,
            )
            stack.push_async_callback(server.stop)
            systems.append(System(name="headrace", weights=kind, version=machine.revision(), engine=server))
        for recipe in RECIPES:
            if recipe.weights not in weights:
                continue
            peer = await _start_peer(recipe)
            if peer is not None:
                stack.push_async_callback(peer.stop)
                systems.append(System(name=recipe.name, weights=recipe.weights, version=peer.version, engine=peer))
        yield systems


async def _start_peer(recipe: PeerRecipe) -> PeerProcess | None:
    python = python_of(PEERS / recipe.environment)
    if not python.exists() or not recipe.model.exists():
        print(f"{recipe.name} ({recipe.weights}) is not installed: make bench-peers", flush=True)
        return None
    print(f"starting {recipe.name} ({recipe.weights})", flush=True)
    try:
        return await PeerProcess.start(
            [str(python), str(DRIVERS / recipe.driver), str(recipe.model)],
            environment=clean_environment(dict(os.environ), python.parent),
            log=LOGS / f"{recipe.name}-{recipe.weights}.log",
        )
    except (PeerFailed, TimeoutError) as error:
        print(f"{recipe.name} ({recipe.weights}) did not start: {error}", flush=True)
        return None
