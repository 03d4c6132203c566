"""Runs the SMG gateway in front of a worker without a model, in the environment of vLLM.

    python smg_driver.py TOKENIZER_FOLDER

The worker speaks as much of vLLM's gRPC contract as SMG asks for and sends each
stream a token at a fixed pace. The client of the gateway is here too. Its first
line names the gateway's process: {"ready": {"version": "1.13.0", "process_id": 7}};
then each job {"stream_count": 64, "token_count": 256, "step_time_s": 0.01} is
answered with how many tokens the worker sent: {"token_count": 16384}.
"""

import asyncio
import json
import random
import socket
import sys
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path

import grpc.aio
from driver import take_stdout
from smg_grpc_proto import vllm_engine_pb2 as pb
from smg_grpc_proto import vllm_engine_pb2_grpc as pb_grpc

MODEL = "paced"
# SMG pings its workers oftener than gRPC's servers allow by themselves.
SERVER_OPTIONS = (
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5000),
    ("grpc.keepalive_permit_without_calls", 1),
)


class PacedWorker(pb_grpc.VllmEngineServicer):
    """Sends random tokens; all streams in step, as a batch would."""

    def __init__(self, tokenizer_folder: str) -> None:
        self._tokenizer_folder = tokenizer_folder
        self._tick = asyncio.Event()
        self.step_time_s = 0.01
        self.sent_count = 0

    async def beat(self) -> None:
        while True:
            await asyncio.sleep(self.step_time_s)
            tick, self._tick = self._tick, asyncio.Event()
            tick.set()

    async def HealthCheck(self, _request: object, _context: object) -> pb.HealthCheckResponse:  # noqa: N802
        return pb.HealthCheckResponse(healthy=True)

    async def GetModelInfo(self, _request: object, _context: object) -> pb.GetModelInfoResponse:  # noqa: N802
        return pb.GetModelInfoResponse(
            model_path=MODEL, served_model_name=MODEL, is_generation=True, max_context_length=4096, vocab_size=49152,
            eos_token_ids=[2], tokenizer_path=self._tokenizer_folder,
        )  # fmt: skip

    async def GetServerInfo(self, _request: object, _context: object) -> pb.GetServerInfoResponse:  # noqa: N802
        return pb.GetServerInfoResponse(server_type="vllm-grpc", data_parallel_size=1)

    async def Abort(self, _request: object, _context: object) -> pb.AbortResponse:  # noqa: N802
        return pb.AbortResponse()

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, _context: object
    ) -> AsyncIterator[pb.GenerateResponse]:
        source = random.Random(request.request_id)
        count, prompt_count = request.sampling_params.max_tokens, len(request.tokenized.input_ids)
        token_ids = source.choices(range(32, 49152), k=count)
        for number, token_id in enumerate(token_ids, start=1):
            await self._tick.wait()
            self.sent_count += 1
            yield pb.GenerateResponse(
                chunk=pb.GenerateStreamChunk(token_ids=[token_id], prompt_tokens=prompt_count, completion_tokens=number)
            )
        yield pb.GenerateResponse(
            complete=pb.GenerateComplete(
                output_ids=token_ids, finish_reason="length", prompt_tokens=prompt_count, completion_tokens=count
            )
        )


async def ask(port: int, token_count: int) -> None:
    """Reads one stream of server-sent events to its end."""
    body = json.dumps(
        {"model": MODEL, "prompt": "Tell me.", "max_tokens": token_count, "stream": True, "temperature": 0}
    ).encode()
    head = ("POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write("\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise SystemExit(f"the gateway answered {status!r}: {await reader.read(2000)!r}")
    while b"[DONE]" not in await reader.readline():
        if reader.at_eof():
            raise SystemExit("the gateway ended a stream early")
    writer.close()


async def wait_ready(port: int) -> None:
    """Waits until the gateway has taken the worker in."""
    async with asyncio.timeout(90):
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /readiness HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                if b" 200 " in await reader.readline():
                    return
                writer.close()
            except OSError:
                pass
            await asyncio.sleep(0.3)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def run(answers: int) -> None:
    worker = PacedWorker(sys.argv[1])
    server = grpc.aio.server(options=SERVER_OPTIONS)
    pb_grpc.add_VllmEngineServicer_to_server(worker, server)
    worker_port, port = server.add_insecure_port("127.0.0.1:0"), free_port()
    await server.start()
    beat = asyncio.create_task(worker.beat())
    gateway = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("smg")), "launch", "--host", "127.0.0.1", "--port", str(port),
        "--worker-urls", f"grpc://127.0.0.1:{worker_port}", "--model-path", sys.argv[1], "--policy", "round_robin",
        "--prometheus-port", str(free_port()), stdout=2,
    )  # fmt: skip
    try:
        await wait_ready(port)
        with open(answers, "w") as out:  # noqa: ASYNC230  # a pipe
            out.write(json.dumps({"ready": {"version": version("smg"), "process_id": gateway.pid}}) + "\n")
            out.flush()
            while line := await asyncio.to_thread(sys.stdin.readline):
                job = json.loads(line)
                worker.step_time_s, before = job["step_time_s"], worker.sent_count
                await asyncio.gather(*(ask(port, job["token_count"]) for _ in range(job["stream_count"])))
                out.write(json.dumps({"token_count": worker.sent_count - before}) + "\n")
                out.flush()
    finally:
        gateway.terminate()
        await gateway.wait()
        beat.cancel()
        await server.stop(None)


if __name__ == "__main__":
    asyncio.run(run(take_stdout()))
