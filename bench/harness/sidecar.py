"""What HTTP costs on top of gRPC: the sidecar's processor time per token, and what it adds to the first token."""

import asyncio
import json
import os
import random
import re
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from harness.headrace_server import HeadraceServer
from harness.processes import cpu_s
from harness.started_process import StartedProcess
from harness.systems import LOGS
from harness.workloads import VOCABULARY_SIZE

STREAM_COUNT = 64
TOKEN_COUNT = 300
FIRST_TOKEN_COUNT = 40
_ADDRESS = re.compile(r"listens on (\S+):(\d+)")
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 15.0
_LAST_CHUNK = b"0\r\n\r\n"
_BODY_LIMIT_BYTES = 2**20


async def measure_sidecar(server: HeadraceServer, *, round_index: int) -> tuple[float, float]:
    """Returns microseconds of processor time per streamed token, and milliseconds added to the first token."""
    async with _started(server) as (process_id, host, port):
        await _streams(host, port, 8, f"warm {round_index}")
        before_s = cpu_s(process_id)
        await _streams(host, port, STREAM_COUNT, f"{round_index}")
        cpu_us = 1e6 * (cpu_s(process_id) - before_s) / (STREAM_COUNT * TOKEN_COUNT)
        over_http, over_grpc = [], []
        source = random.Random(f"first {round_index}")
        for _ in range(FIRST_TOKEN_COUNT):
            prompt = source.choices(range(VOCABULARY_SIZE), k=16)
            over_http.append(await _first_text_over_http_s(host, port, prompt))
            over_grpc.append(await _first_text_over_grpc_s(server, prompt))
    return cpu_us, 1e3 * (statistics.median(over_http) - statistics.median(over_grpc))


@asynccontextmanager
async def _started(server: HeadraceServer) -> AsyncIterator[tuple[int, str, int]]:
    """Runs a sidecar in front of a server; yields its process id and where it listens."""
    command = ["rest", f"--router={server.address}", "--listen=127.0.0.1:0", "--propagation-s=0", "--log-level=warning"]
    process = await StartedProcess.start(
        [sys.executable, "-m", "headrace.services", *command], log=LOGS / "rest.log", environment=os.environ
    )
    try:
        found = _ADDRESS.search((await process.read_line(_START_TIMEOUT_S)).decode())
        assert found is not None, "it says where it listens"
        yield process.process_id, found[1], int(found[2])
    finally:
        process.terminate()
        await process.wait(_STOP_TIMEOUT_S)


async def _streams(host: str, port: int, count: int, name: str) -> None:
    """Runs conversations at once, each on a connection of its own."""
    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            turns = [{"role": "user", "content": f"{name} {number}"}]
            body = {"messages": turns, "max_tokens": TOKEN_COUNT, "ignore_eos": True, "temperature": 0, "stream": True}
            tasks.create_task(_read_all(host, port, body))


async def _read_all(host: str, port: int, body: dict[str, Any]) -> None:
    reader, writer = await _asked(host, port, "/v1/chat/completions", body)
    last = b""
    while not last.endswith(_LAST_CHUNK):
        piece = await reader.read(2**16)
        if not piece:
            raise ConnectionError("the sidecar closed the connection")
        last = last[-len(_LAST_CHUNK) :] + piece
    writer.close()


async def _first_text_over_http_s(host: str, port: int, prompt: list[int]) -> float:
    reader, writer = await asyncio.open_connection(host, port)
    began_s = time.perf_counter()
    writer.write(_request("/v1/completions", {"prompt": prompt, "max_tokens": 8, "temperature": 0, "stream": True}))
    await reader.readuntil(b"data: ")
    passed_s = time.perf_counter() - began_s
    writer.close()
    return passed_s


async def _first_text_over_grpc_s(server: HeadraceServer, prompt: list[int]) -> float:
    began_s = time.perf_counter()
    async with server.client.stream(prompt, max_new_token_count=8, temperature=0.0) as stream:
        async for delta in stream:
            if delta.text:
                break
        return time.perf_counter() - began_s


async def _asked(
    host: str, port: int, path: str, body: dict[str, Any]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(host, port, limit=_BODY_LIMIT_BYTES)
    writer.write(_request(path, body))
    return reader, writer


def _request(path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content
